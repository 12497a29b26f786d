"""Renamed and removed fields of config.yaml: old names are accepted for one version, with a warning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from quantmill.errors import QuantmillError

OF_BUDGET_RECIPES: Final = {"damage": "objective", "gate": "acceptance_test"}
OF_CARDS: Final = {"iso_disk": "same_size"}
_REMOVED: Final = {
    "refit": "was removed: it gained nothing that was measurable; delete it",
}


def with_new_names(data: Any, file: str) -> tuple[Any, list[str]]:
    """The config by its new names, and a warning for each old one.

    QuantmillError where a field is given by both of its names, and for a field that was removed.
    What has another form than a config is left alone: its errors are the parser's.
    """
    warnings: list[str] = []
    data = _copy(data)
    for section, place, names in _sections(data):
        for field, why in _REMOVED.items() if names is OF_BUDGET_RECIPES else ():
            if field in section:
                raise QuantmillError(why, f"{file}: {place}.{field}")
        for old, new in names.items():
            if old not in section:
                continue
            if new in section:
                what = f"{old} is now {new}, and both are there"
                raise QuantmillError(what, f"{file}: {place}.{old}", "delete the old one")
            warnings.append(f"{file}: {place}.{old} is now {new}; rename it")
            fields = {new if field == old else field: value for field, value in section.items()}
            section.clear()
            section.update(fields)
    return data, warnings


def _sections(data: Any) -> Iterator[tuple[dict[str, Any], str, dict[str, str]]]:
    """Each section that may have old names: itself, its place, and the new names by the old ones."""
    yield from _recipes(data, "recipes")
    models = data.get("models") if isinstance(data, dict) else None
    for name, model in models.items() if isinstance(models, dict) else ():
        yield from _recipes(model, f"models.{name}.recipes")
        card = model.get("card") if isinstance(model, dict) else None
        if isinstance(card, dict):
            yield card, f"models.{name}.card", OF_CARDS


def _recipes(holder: Any, place: str) -> Iterator[tuple[dict[str, Any], str, dict[str, str]]]:
    recipes = holder.get("recipes") if isinstance(holder, dict) else None
    for number, recipe in enumerate(recipes if isinstance(recipes, list) else ()):
        # A template may have parameters of these names.
        if isinstance(recipe, dict) and recipe.get("template") == "budget":
            yield recipe, f"{place}[{number}]", OF_BUDGET_RECIPES


def _copy(value: Any) -> Any:
    """Mappings and lists copied, so that the caller's own stay as they are."""
    if isinstance(value, dict):
        return {key: _copy(one) for key, one in value.items()}
    return [_copy(one) for one in value] if isinstance(value, list) else value
