"""Old names of fields: accepted for one version with a warning, refused beside the new name."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from quantmill.config import file as config
from quantmill.config import renamed
from quantmill.config.card import Card
from quantmill.config.recipe import BudgetRecipe
from quantmill.errors import QuantmillError

BASE: dict[str, Any] = {
    "models": {"m": {"source": {"path": "m.gguf"}}},
    "corpora": {"c": {"sources": [{"name": "a", "path": "a.txt"}]}},
    "sensitivity": {"corpus": "c"},
    "recipes": ["Q8_0", {"name": "fit", "template": "budget", "bpw": 4}],
}


def with_fields(own: bool = False, card: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """The config with more fields of its budget recipe or of the card."""
    data = copy.deepcopy(BASE)
    data["recipes"][1] |= fields
    if own:
        data["models"]["m"]["recipes"] = data.pop("recipes")
    if card is not None:
        data["models"]["m"]["card"] = card
    return data


def recipe(data: dict[str, Any]) -> BudgetRecipe:
    parsed = config.parse(data, "my.yaml").recipes_of("m")["fit"]
    assert isinstance(parsed, BudgetRecipe)
    return parsed


def test_old_names_of_a_recipe_mean_the_new_ones_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    data = with_fields(damage="error", gate=False)
    before = copy.deepcopy(data)
    old, new = recipe(data), recipe(with_fields(objective="error", acceptance_test=False))
    assert data == before
    assert old == new
    assert (old.objective, old.acceptance_test) == ("error", False)
    assert capsys.readouterr().err == (
        "warning: my.yaml: recipes[1].damage is now objective; rename it\n"
        "warning: my.yaml: recipes[1].gate is now acceptance_test; rename it\n"
    )


def test_the_place_of_a_models_own_recipe_and_card(capsys: pytest.CaptureFixture[str]) -> None:
    other = {"name": "x", "csv": "x.csv", "source": "there"}
    parsed = config.parse(with_fields(own=True, gate=False, card={"iso_disk": [other]}), "my.yaml")
    assert [model.name for model in parsed.models["m"].card.same_size] == ["x"]
    assert capsys.readouterr().err.splitlines() == [
        "warning: my.yaml: models.m.recipes[1].gate is now acceptance_test; rename it",
        "warning: my.yaml: models.m.card.iso_disk is now same_size; rename it",
    ]


def test_new_names_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    recipe(with_fields(objective="error", acceptance_test=False, card={"same_size": []}))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            with_fields(damage="kld", objective="error"),
            "my.yaml: recipes[1].damage: damage is now objective, and both are there; delete the old one",
        ),
        (
            with_fields(card={"iso_disk": [], "same_size": []}),
            "my.yaml: models.m.card.iso_disk: iso_disk is now same_size, and both are there; "
            "delete the old one",
        ),
        (
            with_fields(refit=["Q8_0"]),
            "my.yaml: recipes[1].refit: was removed: it gained nothing that was measurable; delete it",
        ),
        (with_fields(damage="ppl"), "my.yaml: recipes[1].objective: input should be 'kld' or 'error'"),
    ],
)
def test_what_is_wrong_is_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantmillError) as error:
        config.parse(data, "my.yaml")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_templates_own_parameters_keep_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    data = copy.deepcopy(BASE)
    data["recipes"][0] = {"name": "own", "template": "mine", "gate": 3, "damage": 4, "refit": 5}
    parsed = config.parse(data).recipes_of("m")["own"]
    assert parsed.parameters == {"gate": 3, "damage": 4, "refit": 5}  # type: ignore[union-attr]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "data", [None, [], "x", {"models": []}, {"models": {"m": None}, "recipes": {"a": 1}}]
)
def test_what_is_no_config_is_left_to_the_parser(data: Any) -> None:
    assert renamed.with_new_names(data, "my.yaml") == (data, [])


def test_the_new_names_are_fields_and_the_old_ones_are_not() -> None:
    for names, model in ((renamed.OF_BUDGET_RECIPES, BudgetRecipe), (renamed.OF_CARDS, Card)):
        assert set(names.values()) <= model.model_fields.keys()
        assert not names.keys() & model.model_fields.keys()
