"""The tensors of a file that keep the grid on which the source's values lie: `keep: grid` of a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from quantmill.formats.manifest import read_grids
from quantmill.formats.settings import Quantize
from quantmill.quantize.kernels import Task


def kept(todo: list[Task], manifest: Path, settings: Quantize) -> list[Task]:
    """The tasks, those of them packed and not rounded whose type is that of their grid."""
    if "keep" not in settings:
        return todo
    grids = read_grids(manifest)
    return [
        replace(task, packed=True, importance=None, moments=None)
        if grids.get(task.name) == task.type
        else task
        for task in todo
    ]
