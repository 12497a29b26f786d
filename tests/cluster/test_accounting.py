"""Runs through profiles/slurm where Slurm keeps accounts. Skipped where there is no slurmdbd."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from checkout import Checkout
from cluster import accounting, slurm
from cluster.runs import Running, of_rule, stages, until

pytestmark = pytest.mark.skipif(
    slurm.why_not(accounted=True) is not None, reason=slurm.why_not(accounted=True) or ""
)
pytest.importorskip("snakemake_executor_plugin_slurm", reason="make cluster installs the plugin")

TARGET = "results/tiny/manifest.tsv"  # of a single job


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    with slurm.running(accounted=True) as cluster:
        yield cluster


def accounted(cluster: slurm.Cluster, checkout: Checkout) -> list[tuple[str, str]]:
    """The (account, state) of each job of a checkout, as the accounting has them."""
    rows = cluster.output("sacct", "-n", "-X", "-P", "--format=Account,State,WorkDir").splitlines()
    return [(row.split("|")[0], row.split("|")[1]) for row in rows if row.endswith(f"|{checkout.folder}")]


def test_the_profile_works_as_it_is(cluster: slurm.Cluster, checkout: Checkout) -> None:
    """With the user's own account; and what the jobs used of what they asked for can be had."""
    Running(checkout, "imatrices", "--slurm-efficiency-report").wait()
    jobs = accounted(cluster, checkout)
    assert set(jobs) == {(accounting.ACCOUNT, "COMPLETED")}
    [report] = checkout.folder.glob("efficiency_report_*.csv")
    header, *rows = [line.split(",") for line in report.read_text("utf-8").splitlines()]
    column = {name: [row[number] for row in rows] for number, name in enumerate(header)}
    assert "rule_measure_imatrix_wildcards_tiny" in column["RuleName"]
    assert all(0 < float(megabytes) < 2000 for megabytes in column["MaxRSS_MB"])


def test_a_job_that_is_cancelled_is_tried_again(cluster: slurm.Cluster, checkout: Checkout) -> None:
    """By squeue: of what sacct calls `CANCELLED by 0` the plugin never learns that it has ended."""
    run = Running(checkout, TARGET)
    [job] = until(lambda: of_rule(cluster, "list_tensors")[:1])
    cluster.output("scancel", job)
    run.wait()
    assert [state.partition(" ")[0] for _, state in accounted(cluster, checkout)] == [
        "CANCELLED",
        "COMPLETED",
    ]


def test_sacct_tells_of_a_stage_that_is_killed(cluster: slurm.Cluster, checkout: Checkout) -> None:
    run = Running(checkout, TARGET, "--slurm-status-command=sacct")
    [stage] = until(lambda: stages(checkout, "model.manifest")[:1])
    os.kill(stage, signal.SIGKILL)
    run.wait()
    assert [state for _, state in accounted(cluster, checkout)] == ["FAILED", "COMPLETED"]


def test_sacct_is_asked_where_slurm_forgets_jobs(cluster: slurm.Cluster, checkout: Checkout) -> None:
    conf = cluster.folder / "slurm.conf"
    kept = conf.read_text("utf-8")
    conf.write_text(kept.replace("MinJobAge=86400", "MinJobAge=5"), encoding="utf-8")
    cluster.output("scontrol", "reconfigure")
    try:
        assert "Falling back to 'sacct'" in Running(checkout, TARGET).wait()
    finally:
        conf.write_text(kept, encoding="utf-8")
        cluster.output("scontrol", "reconfigure")


def test_an_account_of_others_is_refused(cluster: slurm.Cluster, checkout: Checkout) -> None:
    start = time.monotonic()
    run = Running(checkout, TARGET, "--default-resources", "slurm_account=project7", "--retries=0")
    assert run.ended(60) != 0
    assert time.monotonic() - start < 60
    assert "The given account project7 appears to be invalid. Available accounts:" in run.text
    assert accounting.ACCOUNT in run.text
    assert accounted(cluster, checkout) == []
