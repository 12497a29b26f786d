"""What a recipe says of the draft head (multi-token prediction, MTP) of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from quantmill.config.fields import Text
from quantmill.config.refusal import refuse

_FORMS = ("none", "only")
DESCRIPTION = (
    "the draft head (multi-token prediction): none leaves it out of the file; else types of its tensors, "
    "{type: q8_0} for all, or by role or group of roles, such as {attention: q8_0, experts: q4_K}; "
    "default: as the recipe says"
)


def _plain(given: Any) -> Any:
    """Refuse a bare type, which would read as one of the words."""
    if isinstance(given, str) and given not in _FORMS:
        raise refuse("mtp", f"{given} is neither none nor only; for a type write {{type: {given}}}")
    return given


def _whole(given: Any) -> Any:
    """The same of a size-targeted recipe, whose sensitivities are of the model and not of its head."""
    if given == "only":
        text = "only: types are not chosen for a head alone; give it a recipe with a template, such as preset"
        raise refuse("mtp_of_budget", text)
    return _plain(given)


def whole(recipes: Mapping[str, Any]) -> list[str]:
    """The names of the recipes whose files are models, and no draft heads alone."""
    return [name for name, recipe in recipes.items() if recipe.mtp != "only"]


def _kind(given: Any) -> str:
    return "<types>" if isinstance(given, dict) else "<word>"


_Types = Annotated[dict[Text, Text], Field(min_length=1), Tag("<types>")]

Mtp = Annotated[
    Annotated[Literal["none", "only"], Tag("<word>")] | _Types, Discriminator(_kind), BeforeValidator(_plain)
]
MtpOfBudget = Annotated[
    Annotated[Literal["none"], Tag("<word>")] | _Types, Discriminator(_kind), BeforeValidator(_whole)
]
