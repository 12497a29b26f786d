"""Names of published files that tools do not resolve, said before a run starts."""

from __future__ import annotations

from contextlib import suppress
from math import prod
from pathlib import Path

from quantmill import names
from quantmill.config.mtp import whole
from quantmill.errors import QuantmillError
from quantmill.flow.project import Project
from quantmill.formats.ggufio import read_header


def remarks(project: Project) -> list[str]:
    """A line for each name of a published model's file with which users will have trouble."""
    models = [model for model in project.published if project.config.repository_of(model)]
    return [f"{project.file}: {line}" for model in models for line in _of_model(project, model)]


def _of_model(project: Project, model: str) -> list[str]:
    every = project.config.recipes_of(model)
    recipes = whole(every)
    presets = {recipe: preset for recipe in recipes if (preset := _preset(project, model, recipe))}
    files = {recipe: f"{model}-{recipe}.gguf" for recipe in recipes}
    drafts = [
        recipe for recipe in every if recipe not in recipes and names.is_model(f"{model}-{recipe}.gguf")
    ]
    return names.remarks(files, presets) + [names.of_draft(recipe) for recipe in drafts]


def _preset(project: Project, model: str, recipe: str) -> str | None:
    """What preset a recipe's file is like, as far as it is known: its base, or its budget of bits."""
    chosen = project.recipe(model, recipe)
    if not chosen.size_targeted:
        base = project.rendered(model, recipe).parameters.get("base")
        return base if isinstance(base, str) and names.label(base) == base else None
    budget = project.allocated(model, recipe).budget
    if "bpw" in budget:
        return names.nearest(budget["bpw"])
    size = budget.get("size") or budget["memory"]["total"]
    with suppress(QuantmillError):  # there is no source yet
        header = read_header(Path(project.source_files(model)[0]), data=False)
        return names.nearest(8 * size / max(1, sum(prod(tensor.shape) for tensor in header.tensors)))
    return None
