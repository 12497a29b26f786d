"""A file's scores in evaluations: HumanEval, and the tasks of lm-eval that have an interval."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Final

from quantmill.files import split_lines
from quantmill.formats.measurements import HumanEval, Task, Tasks
from quantmill.judge import compare

HUMANEVAL: Final = "HumanEval"
"""The name of HumanEval among the scores."""


def tasks_by_name(tasks: Tasks | None) -> list[tuple[str, Task]]:
    """The entries of tasks.json by name; a task with several metrics has the metric after its name."""
    entries = tasks["tasks"] if tasks else []
    count = Counter(task["name"] for task in entries)
    return [
        (task["name"] if count[task["name"]] == 1 else f"{task['name']} ({task['metric']})", task)
        for task in entries
    ]


def scores_of(
    humaneval: HumanEval | None, tasks: Tasks | None, samples: Path | None = None
) -> dict[str, compare.Score]:
    """A file's scores that have an interval, by the evaluation's name; `samples` is humaneval.jsonl."""
    scores = {}
    if humaneval:
        low, high = humaneval["interval"]
        words = f"{humaneval['passed']} of {humaneval['problems']}"
        answers = split_lines(samples.read_text("utf-8")) if samples and samples.exists() else []
        passes = tuple(bool(json.loads(answer)["passed"]) for answer in answers)
        scores[HUMANEVAL] = compare.Score(humaneval["pass_at_1"], low, high, words, passes)
    for name, task in tasks_by_name(tasks):
        if task["stderr"] is not None:
            value, half_width = task["value"], compare.Z_95 * task["stderr"]
            words = f"{task['metric']}, {task['samples']} questions"
            scores[name] = compare.Score(value, value - half_width, value + half_width, words)
    return scores
