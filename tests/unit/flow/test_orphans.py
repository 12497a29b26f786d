"""Jobs of a former run that Slurm still has: found by the folder, named with the cure."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantmill.errors import QuantmillError
from quantmill.flow import orphans


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What squeue prints; the working directory is `tmp_path`."""
    rows = tmp_path / "rows"
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\ncat {rows}\n", encoding="utf-8")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return rows


def workflow(executor: str = "slurm", *, main: bool = True) -> Any:
    return SimpleNamespace(executor_plugin=SimpleNamespace(name=executor), is_main_process=main)


def test_jobs_of_this_folder_are_named(queue: Path) -> None:
    here = queue.parent
    queue.write_text(
        f"11|PD|{here}|rule_quantize_wildcards_m_Q8_0\n"
        f"12|R|{here}|rule_measure_imatrix_wildcards_m\n"
        f"13|CD|{here}|rule_quantize_wildcards_m_Q6_K\n"  # it has ended
        "14|R|/elsewhere|rule_quantize\n"
        f"15|R|{here}|my own job\n"
        "rubbish\n",
        encoding="utf-8",
    )
    with pytest.raises(QuantmillError) as error:
        orphans.refuse(workflow())
    assert str(error.value) == (
        f"{here}: 2 Slurm jobs of a former run are still in the queue; "
        "wait until they have ended, or cancel them: scancel 11 12"
    )


@pytest.mark.parametrize("run", [workflow("local"), workflow("kubernetes"), workflow(main=False)])
def test_other_runs_do_not_ask(run: Any, queue: Path) -> None:
    queue.write_text(f"11|R|{queue.parent}|rule_x\n", encoding="utf-8")
    orphans.refuse(run)


def test_without_an_answer_the_run_goes_on(queue: Path) -> None:
    orphans.refuse(workflow())  # cat fails
    (queue.parent / "squeue").unlink()
    orphans.refuse(workflow())
