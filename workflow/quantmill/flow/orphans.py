"""Jobs of a former run that are still in a cluster's queue: they would write what this run writes.

A run that is killed leaves its Slurm jobs behind. They start later, and Snakemake, which knows
nothing of them, would submit the same work again.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantmill.errors import QuantmillError
from quantmill.files import split_lines


def refuse(workflow: Any) -> None:
    """QuantmillError where Slurm has jobs of a former run in this folder; `workflow` is Snakemake's."""
    if workflow.executor_plugin.name != "slurm" or not workflow.is_main_process:
        return
    folder = Path.cwd()
    if jobs := queued(folder):
        what = f"{len(jobs)} Slurm jobs of a former run are still in the queue"
        cure = f"wait until they have ended, or cancel them: scancel {' '.join(jobs)}"
        raise QuantmillError(what, folder, cure)


def queued(folder: Path) -> list[str]:
    """The numbers of this user's jobs that Snakemake submitted from `folder` and that run or wait."""
    command = ["squeue", "--noheader", f"--user={os.geteuid()}", "--states=all", "--format=%i|%t|%Z|%k"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=30, check=True
        )
        rows = [line.split("|", 3) for line in split_lines(done.stdout)]
        return [
            row[0]
            for row in rows
            if len(row) == 4 and row[1] in ("R", "PD", "CF", "S") and row[2] == str(folder)
            if row[3].startswith("rule_")
        ]
    return []
