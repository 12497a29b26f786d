"""Whether the store's cap has room for what a config needs, said before a run starts.

A file's tensors need room in the store only where it is on another file system than
the results, or where their file is deleted after a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from quantmill import text
from quantmill.errors import QuantmillError
from quantmill.flow.paths import Paths
from quantmill.flow.project import Project
from quantmill.formats.allocation import PLAN
from quantmill.formats.moments import MOMENTS

# Before there is a plan: of a source of 16 bits a weight, a file of 4.
_SHARE_OF_SOURCE = 4


def warning(project: Project) -> str | None:
    """A line where the cap is below what the config needs, as far as that is known; None where it is not."""
    linked = _device(project.results) == _device(project.store)
    paths = Paths(project)
    need = sum(_moments(paths)) + sum(
        copies * _file_bytes(paths, model, recipe)
        for model in project.models
        for recipe in project.config.recipes_of(model)
        if (copies := _copies(project, model, recipe, linked=linked))
    )
    cap = project.config.store.max_bytes
    if need <= cap:
        return None
    what = f"{text.size(cap)} for the store, and what this config keeps there may be {text.size(need)}"
    cure = f"beyond the cap work is done again: set `store: {{max: {text.at_least(need)}}}`"
    return f"{project.file}: {what}; {cure}"


def _copies(project: Project, model: str, recipe: str, *, linked: bool) -> int:
    """How many times a recipe's tensors may be in the store: those of its file, those rounded to nearest
    before they are rounded with error feedback, and those rounded by gptq for gptaq.
    """
    return (not linked) + project.fed_back(model, recipe) + project.crossed(model, recipe)


def _file_bytes(paths: Paths, model: str, recipe: str) -> int:
    """The size of a recipe's file by its plan, else an estimate; 0 where the source is not there yet."""
    with suppress(QuantmillError):
        return PLAN.read(Path(paths.of(model, f"plans/{recipe}.json")))["file_bytes"]
    with suppress(OSError):
        files = map(Path, paths.project.source_files(model))
        return sum(file.stat().st_size for file in files) // _SHARE_OF_SOURCE
    return 0


def _moments(paths: Paths) -> Iterator[int]:
    """The bytes of the second moments that were measured before."""
    for model in paths.project.models:
        for report in paths.moments(model):
            with suppress(QuantmillError):
                yield MOMENTS.read(Path(report))["bytes"]


def _device(folder: Path) -> int:
    """The file system of a folder, or of the one that it will be made in."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.stat().st_dev
