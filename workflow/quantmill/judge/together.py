"""The files of projectors that are published beside a language model's, for its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantmill.formats.projected import PROJECTED, Projected
from quantmill.formats.publication import FACTS, WITHHELD, Part, files_of
from quantmill.measures import MEASURES


@dataclass(frozen=True)
class ProjectorFile:
    """A file of a projector, and what was measured of it; `parts` are what it is in the repository."""

    model: str
    name: str
    file: str
    bytes: int
    parts: list[Part]
    measured: Projected | None


def read(results: Path, projectors: Mapping[str, Sequence[str]]) -> list[ProjectorFile]:
    """The files of the recipes of each projector, from the folder of all models' results, in that order;
    without those that its own card withholds.
    """
    files = []
    for model, recipes in projectors.items():
        folder = results / model
        withheld = {one["recipe"] for one in WITHHELD.read(folder / "card" / "withheld.json")["withheld"]}
        for recipe in recipes:
            facts = FACTS.read(folder / "gguf" / f"{model}-{recipe}.json")
            path = folder / MEASURES["projector"].path(recipe)
            measured = PROJECTED.read(path) if path.exists() else None
            if recipe not in withheld:
                parts = files_of(facts)
                files.append(ProjectorFile(model, recipe, facts["file"], facts["bytes"], parts, measured))
    return files
