"""Tasks of lm-eval: the score of each file beside the source's, for each task and metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantmill.card.view import View
from quantmill.formats.measurements import Task as Entry
from quantmill.judge.results import Results
from quantmill.judge.scores import tasks_by_name


@dataclass(frozen=True)
class Task:
    """A task and metric: the source's entry of tasks.json, and of each file its name, score and verdict."""

    name: str
    source: Entry
    score: str
    rows: list[tuple[str, str, str]]
    validity_warning: str | None


def build(view: View) -> dict[str, Any] | None:
    """Where it was measured."""
    tasks = [_task(view.measured, name, entry) for name, entry in _entries(view.measured)]
    return {"tasks": tasks} if tasks else None


def score(entry: Entry) -> str:
    """A task's score in percent, with its standard error where it has one."""
    error = "" if entry["stderr"] is None else f" ± {100 * entry['stderr']:.1f}"
    return f"{100 * entry['value']:.1f}{error} %"


def _entries(measured: Results) -> list[tuple[str, Entry]]:
    return tasks_by_name(measured.source["tasks"])


def _task(measured: Results, name: str, source: Entry) -> Task:
    rows = [
        (quant.name, score(entry), measured.beside_source(quant, name))
        for quant in measured.quants
        for own_name, entry in tasks_by_name(quant.measured["tasks"])
        if own_name == name
    ]
    return Task(name, source, score(source), rows, measured.validity_warnings.get(name))
