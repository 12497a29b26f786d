"""Runs of Snakemake through profiles/slurm, and what a test waits for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkout import Checkout
from cluster import slurm

# The profile as it is, with less waiting: the file system here is local, and the nodes are small.
PROFILE = ("--profile=profiles/slurm", "--latency-wait=5", "--slurm-init-seconds-before-status-checks=2")


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

    def wait(self, seconds: float = 900) -> str:
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


def stages(checkout: Checkout, stage: str) -> list[int]:
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
