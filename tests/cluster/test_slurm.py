"""Runs through profiles/slurm on a Slurm of two nodes: `make test-cluster`. Skipped where there is none."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from checkout import Checkout
from cluster import slurm

pytestmark = pytest.mark.skipif(slurm.why_not() is not None, reason=slurm.why_not() or "")
pytest.importorskip("snakemake_executor_plugin_slurm", reason="make cluster installs the plugin")

# The profile as it is, with less waiting: the file system here is local, and the nodes are small.
PROFILE = ("--profile=profiles/slurm", "--latency-wait=5", "--slurm-init-seconds-before-status-checks=2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    # Munge wants a folder that everybody may enter, which pytest's own are not.
    with TemporaryDirectory(prefix="slurm-") as folder, slurm.running(Path(folder)) as cluster:
        yield cluster


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A small config: two files, their divergences, one speed."""

    def small(config: dict[str, Any]) -> None:
        del config["sensitivity"], config["corpora"]["tuning"]
        config["bench"] = {"kld": config["bench"]["kld"]}
        config["imatrix"]["chunks"] = 17

    made = Checkout.build(tmp_path / "checkout")
    made.configure(small)
    return made


class Running:
    """Snakemake on the cluster, in the background."""

    def __init__(self, checkout: Checkout, *arguments: str) -> None:
        command = [sys.executable, "-m", "snakemake", *arguments, *PROFILE, "--max-threads=1"]
        environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
        self.log = checkout.folder / f"run-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=checkout.folder, env=environment, stdout=log, stderr=log
            )

    def wait(self, seconds: float = 420) -> str:
        """Its output, once it has ended well."""
        code = self.ended(seconds)
        assert code == 0, self.text
        return self.text

    def ended(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it hangs:\n{self.text}") from None

    @property
    def text(self) -> str:
        return self.log.read_text("utf-8")


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What a condition gives, once it gives anything."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


def of_rule(cluster: slurm.Cluster, rule: str) -> list[str]:
    """The numbers of the jobs of a rule that run."""
    rows = [row.split(None, 2) for row in cluster.jobs()]
    return [row[0] for row in rows if row[1] == "R" and row[2].startswith(f"rule_{rule}")]


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
    stage = until(lambda: _stages(checkout, "measure.imatrix"))
    os.kill(stage[0], signal.SIGKILL)
    until(lambda: len(_stages(checkout, "quantize.write")) > 0)
    cluster.down("n2")
    try:
        run.wait()
    finally:
        cluster.up("n2")
    assert len(files(checkout)) == 2


def _stages(checkout: Checkout, stage: str) -> list[int]:
    """The processes of a stage in a checkout."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
            if f"quantmill.{stage}" in words and (process / "cwd").resolve() == checkout.folder:
                found.append(int(process.name))
        except OSError:
            continue
    return found


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
