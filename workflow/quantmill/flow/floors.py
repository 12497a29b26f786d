"""Recipes with a floor of the speed: which there are, and the types whose speed they need to know."""

from __future__ import annotations

from typing import Final

from quantmill.errors import QuantmillError
from quantmill.flow.project import Project
from quantmill.recipe.rules import known_type

_GRIDS: Final = ("mxfp4", "q4_0", "q4_1", "q5_0", "q8_0", "tq2_0")
"""The types of grids that a source may lie on (`quantmill.grid`)."""


def has(project: Project, model: str, recipe: str) -> bool:
    """Whether a recipe has a floor."""
    chosen = project.recipe(model, recipe)
    return chosen.size_targeted and project.allocated(model, recipe).floor is not None


def models(project: Project) -> set[str]:
    """The models with such a recipe."""
    return {model for model in project.models if _recipes(project, model)}


def types(project: Project, model: str) -> list[str]:
    """The types that the model's recipes with a floor may have, by their own names.

    QuantmillError for a recipe whose candidate types only a published table of sensitivities knows.
    """
    given: set[str] = set()
    for name in _recipes(project, model):
        recipe = project.allocated(model, name)
        where = project.place_of(model, name)
        if recipe.types is None and model in project.with_imported_sensitivity:
            cure = "name the candidate types under types"
            raise QuantmillError("it must be known which types are measured", f"{where}.at_least.tg", cure)
        given |= {known_type(kind, "types", where) for kind in recipe.types or project.candidate_types(model)}
        given |= {known_type(str(pin["type"]), "pin", where) for pin in recipe.pin if "type" in pin}
        given |= set(_GRIDS) if recipe.keep else set()
    return sorted(given)


def _recipes(project: Project, model: str) -> list[str]:
    return [name for name in project.config.recipes_of(model) if has(project, model, name)]
