"""Runs through profiles/slurm on a Slurm of two nodes: `make test-cluster`. Skipped where there is none."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkout import Checkout
from cluster import slurm
from cluster.runs import Running, of_rule, stages, until

pytestmark = pytest.mark.skipif(slurm.why_not() is not None, reason=slurm.why_not() or "")
pytest.importorskip("snakemake_executor_plugin_slurm", reason="make cluster installs the plugin")


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    with slurm.running() as cluster:
        yield cluster


def files(checkout: Checkout) -> dict[str, bytes]:
    """The quantized files."""
    return {path.name: path.read_bytes() for path in checkout.result("gguf").glob("*.gguf")}


def test_a_run_with_shards_on_two_nodes_makes_what_one_machine_makes(
    cluster: slurm.Cluster, checkout: Checkout, tmp_path: Path
) -> None:
    here = checkout.copy(tmp_path / "here")
    Running(checkout, "all", "--config", "shards=3").wait()
    jobs = cluster.output("scontrol", "-o", "show", "job").splitlines()
    mine = [dict(re.findall(r"(\w+)=(\S*)", job)) for job in jobs if f"WorkDir={checkout.folder}" in job]
    assert {job["NodeList"] for job in mine} == {"n1", "n2"}  # one has a single core
    assert {job["NumCPUs"] for job in mine} == {"1"}
    assert all(job["TimeLimit"] != "01:00:00" for job in mine)  # the partition's: they ask for their own
    rules = {job["Comment"].split("_wildcards")[0] for job in mine}
    assert "rule_shard_imatrix" in rules and "rule_shard_divergence" not in rules
    assert not rules & {"rule_plan_types", "rule_write_card"}
    assert checkout.due() == set()
    here.run("quants")
    assert files(here) == files(checkout) != {}


def test_what_happens_to_jobs_is_made_good(cluster: slurm.Cluster, checkout: Checkout) -> None:
    """A job that is cancelled, a stage that is killed, a node that dies."""
    run = Running(checkout, "quants")
    [job] = until(lambda: of_rule(cluster, "list_tensors")[:1])
    cluster.output("scancel", job)
    until(lambda: of_rule(cluster, "measure_imatrix")[:1])
    [stage] = until(lambda: stages(checkout, "measure.imatrix")[:1])
    os.kill(stage, signal.SIGKILL)
    until(lambda: len(stages(checkout, "quantize.write")) > 0)
    cluster.down("n2")
    try:
        run.wait()
    finally:
        cluster.up("n2")
    assert len(files(checkout)) == 2


def test_jobs_of_a_killed_run_are_named(cluster: slurm.Cluster, checkout: Checkout) -> None:
    run = Running(checkout, "imatrices")
    until(lambda: cluster.jobs())
    cluster.output("scontrol", "update", "PartitionName=main", "State=DOWN")  # what is not begun stays queued
    try:
        run.process.kill()
        run.process.wait()
        checkout.run("--unlock", cores=None)
        again = Running(checkout, "imatrices")
        if again.process.wait(120) == 0:
            pytest.skip("the jobs had ended")
        line = next(line for line in again.text.splitlines() if line.startswith("error: "))
        assert re.fullmatch(
            rf"error: {checkout.folder}: \d+ Slurm jobs of a former run are still in the queue; "
            r"wait until they have ended, or cancel them: scancel( \d+)+",
            line,
        )
        assert "Traceback" not in again.text
        cluster.output("scancel", *line.rpartition("scancel ")[2].split())
    finally:
        cluster.output("scontrol", "update", "PartitionName=main", "State=UP")
    until(lambda: not cluster.jobs())
    Running(checkout, "imatrices").wait()


def test_a_partition_without_a_node_that_fits_is_said(cluster: slurm.Cluster, checkout: Checkout) -> None:
    start = time.monotonic()
    run = Running(
        checkout,
        "imatrices",
        "--default-resources",
        "slurm_partition=small",
        "--set-resources",
        "build_corpus:mem_mb=900000",
        "--retries=0",
    )
    assert run.ended(60) != 0
    assert time.monotonic() - start < 60
    assert "Requested node configuration is not available" in run.text
