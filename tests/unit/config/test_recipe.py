"""Recipes fitted to a budget, and imported sensitivities, in the user's file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest

from quantmill.config import file as config
from quantmill.config.recipe import BudgetRecipe
from quantmill.engine import library
from quantmill.errors import QuantmillError

GIB = 1 << 30
BASE: dict[str, Any] = {
    "models": {"m": {"source": {"path": "m.gguf"}}},
    "sensitivity": {"import": "kld_results.csv", "curve": "group0.csv"},
    "recipes": ["Q8_0", {"name": "fit", "template": "budget", "size": "12.92 GiB"}],
}
MEASURED: dict[str, Any] = {
    "corpora": {"c": {"sources": [{"name": "a", "path": "a.txt"}]}},
    "sensitivity": {"corpus": "c"},
}
FULL: dict[str, Any] = {
    "name": "fit",
    "template": "budget",
    "memory": {"total": "16 GiB", "context": 32768, "cache": "q8_0", "reserve": "500 MB"},
    "types": ["q3_K", "q4_K"],
    "harmonize": [["attn_q", "attn_k"]],
    "pin": [{"role": "output", "type": "q6_K"}],
    "at_least": {"attn_v": "q4_K"},
    "at_most": {"ffn_down": "q6_K"},
    "engine": "mainline",
    "imatrix": "required",
    "objective": "error",
    "acceptance_test": False,
}


def parsed(recipe: dict[str, Any] | None = None, **fields: Any) -> config.Config:
    """The config with another budget recipe, or other sections."""
    data = copy.deepcopy(BASE) | fields
    if recipe is not None:
        data["recipes"][1] = recipe
    return config.parse({key: value for key, value in data.items() if value is not None})


def budget(recipe: dict[str, Any]) -> dict[str, Any]:
    """The budget of a recipe, in bytes."""
    result = parsed({"name": "fit", "template": "budget", **recipe}).recipes_of("m")["fit"]
    assert isinstance(result, BudgetRecipe)
    return result.budget


def test_the_kinds_of_budget_in_bytes() -> None:
    assert budget({"size": "12.92 GiB"}) == {"size": int(12.92 * GIB)}
    assert budget({"size": "123 B"}) == {"size": 123}
    assert budget({"bpw": 4}) == {"bpw": 4}
    assert budget({"memory": {"total": "16 GiB", "context": 4096}}) == {
        "memory": {"total": 16 * GIB, "context": 4096, "cache": "f16", "reserve": GIB}
    }
    two = {"gpu": "16 GiB", "cpu": "48 GiB", "context": 32768, "cache": "q8_0"}
    assert budget({"memory": two}) == {
        "pools": {"gpu": 16 * GIB, "cpu": 48 * GIB, "context": 32768, "cache": "q8_0", "reserve": GIB}
    }


def test_every_field_reaches_the_allocation_but_the_acceptance_test() -> None:
    result = parsed(FULL, **MEASURED).recipes_of("m")["fit"]
    assert isinstance(result, BudgetRecipe)
    settings = result.settings
    assert "gate" not in settings and not result.acceptance_test
    assert settings["use_imatrix"] == "required" and settings["damage"] == "error"
    assert settings["budget"]["memory"]["reserve"] == 500_000_000
    assert {key: settings[key] for key in ("types", "harmonize", "pin", "at_least", "at_most", "engine")} == {
        key: FULL[key] for key in ("types", "harmonize", "pin", "at_least", "at_most", "engine")
    }


def test_a_floor_of_the_speed_is_apart_from_those_of_types() -> None:
    given = FULL | {"at_least": {"attn_v": "q4_K", "tg": 20}}
    result = parsed(given, **MEASURED).recipes_of("m")["fit"]
    assert isinstance(result, BudgetRecipe)
    assert result.floor == result.settings["floor"] == 20.0
    assert result.settings["at_least"] == {"attn_v": "q4_K"}
    plain = parsed(FULL, **MEASURED).recipes_of("m")["fit"]
    assert isinstance(plain, BudgetRecipe)
    assert plain.floor is None and "floor" not in plain.settings


def test_a_model_may_have_its_own_sensitivity_or_none() -> None:
    own = {"source": {"path": "m.gguf"}, "sensitivity": None, "recipes": ["Q8_0"]}
    result = parsed(models={"m": BASE["models"]["m"], "other": own})
    assert result.sensitivity_of("other") is None
    assert result.sensitivity_of("m").results == "kld_results.csv"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "recipes[1]: no budget; give it one of size, bpw and memory"),
    ({"size": "1 GiB", "bpw": 4.1}, "recipes[1].bpw: size is given too; keep one of them"),
    ({"bpw": 4.1, "memory": {"total": "1 GiB", "context": 1}}, "recipes[1].memory: bpw is given too"),
    ({"size": "12,92 GiB"}, 'recipes[1].size: "12,92 GiB" is not allowed; a size is a number and its unit'),
    ({"bpw": "4.1"}, "recipes[1].bpw: "),
    ({"bpw": -1}, "recipes[1].bpw: input should be greater than 0"),
    ({"bpw": 4, "typs": []}, "recipes[1].typs: unknown field; did you mean types?"),
    ({"bpw": 4, "types": []}, "recipes[1].types: is empty; give at least one"),
    ({"bpw": 4, "types": ["q4_K", "q4_K"]}, "recipes[1].types[1]: q4_K is there twice"),
    ({"bpw": 4, "harmonize": [["attn_q"]]}, "recipes[1].harmonize[0]: each entry has two"),
    ({"bpw": 4, "harmonize": [["a", "b"], ["c", "b"]]}, "recipes[1].harmonize[1]: each entry has two"),
    ({"memory": {"total": "1 GiB"}}, "recipes[1].memory.context: missing field; add it"),
    ({"memory": {"total": "1 GiB", "context": 9, "cache": "q4_K"}}, "recipes[1].memory.cache: input"),
    ({"memory": {"gpu": "1 GiB", "context": 9}}, "recipes[1].memory.cpu: missing field; add it"),
    (
        {"memory": {"gpu": "1 GiB", "cpu": "1 GiB", "total": "2 GiB", "context": 9}},
        "recipes[1].memory.total: unknown field",
    ),
    ({"bpw": 4, "keep": "grids"}, "recipes[1].keep: input should be 'grid'"),
    (
        {"bpw": 4, "mtp": "only"},
        "recipes[1].mtp: only: types are not chosen for a head alone; give it a recipe with a template, such "
        "as preset",
    ),
    (
        {"bpw": 4, "mtp": "q8_0"},
        "recipes[1].mtp: q8_0 is neither none nor only; for a type write {type: q8_0}",
    ),
    ({"bpw": 4, "mtp": {}}, "recipes[1].mtp: is empty; give at least one"),
    ({"bpw": 4, "at_least": {"tg": "q4_K"}}, "recipes[1].at_least.tg: is tokens a second, such as 20"),
    ({"bpw": 4, "at_least": {"attn_v": 4}}, "recipes[1].at_least.attn_v: is a type, such as q4_K"),
    ({"bpw": 4, "at_least": {"tg": 0}}, "recipes[1].at_least.tg"),
    (
        {"bpw": 4, "at_least": {"tg": 20}, "engine": "ik"},
        "recipes[1].at_least.tg: the speed of types is measured in llama.cpp, not in ik; leave it out",
    ),
    ({"bpw": 4, "engine": "other"}, "recipes[1].engine: input should be 'mainline' or 'ik'"),
    ({"bpw": 4, "objective": "error"}, "recipes[1].objective: kld is all that an imported sensitivity knows"),
    ({"bpw": 4, "objective": "ppl"}, "recipes[1].objective: input should be 'kld' or 'error'"),
]


@pytest.mark.parametrize(("recipe", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_refused_with_its_path(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantmillError) as error:
        parsed({"name": "fit", "template": "budget", **recipe})
    assert str(error.value).startswith(f"config.yaml: {message}"), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sensitivity": None}, "recipes[1]: m has no sensitivity, which a budget needs"),
        ({"sensitivity": {"import": "a.csv"}}, "sensitivity.curve: missing field"),
        ({"sensitivity": {"import": "a", "curv": "b"}}, "sensitivity.curv: unknown field; did you mean"),
        ({"sensitivity": {"import": 3, "curve": "b"}}, "sensitivity.import: must be text, not 3"),
    ],
)
def test_sensitivity(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantmillError, match=r"^config\.yaml: ") as error:
        parsed(**fields)
    assert message in str(error.value)


def test_one_name_is_no_budget_here_and_a_preset_there() -> None:
    other = {"source": {"path": "o.gguf"}, "recipes": [{"name": "fit", "base": "Q8_0"}]}
    with pytest.raises(QuantmillError, match=r"recipes\[1\]\.name: another model's recipe fit has no budget"):
        parsed(models={"m": BASE["models"]["m"], "o": other})


@pytest.mark.parametrize("missing", ["import", "curve"])
def test_tables_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"import": "kld_results.csv", "curve": "group0.csv"}
    for name in ("m.gguf", "preset.yaml.j2", *(file for key, file in files.items() if key != missing)):
        (tmp_path / name).write_text("", encoding="utf-8")
    with pytest.raises(QuantmillError, match=rf"sensitivity\.{missing}: no such file: {files[missing]}"):
        config.check_files(parsed(), "config.yaml", [tmp_path])


def test_the_engines_of_the_config_are_those_of_the_library() -> None:
    assert get_args(BudgetRecipe.model_fields["engine"].annotation) == tuple(library.ENGINES)


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        (
            ["Q8_0", {"name": "x", "base": "Q8_0", "mtp": "only", "rounding": "gptq"}],
            "recipes[1].rounding: gptq: no second moments are measured of a draft head; leave rounding out",
        ),
        (
            [{"name": "x", "base": "Q8_0", "mtp": "only"}],
            "recipes: all make a draft file, which only works beside its model; add a recipe of the model "
            "itself",
        ),
        (
            [{"name": "x", "base": "Q8_0", "mtp": {"attention": 8}}],
            "recipes[0].mtp.attention: must be text, not 8; put it in quotes",
        ),
    ],
)
def test_what_a_draft_head_cannot_have_is_refused(recipes: list[Any], message: str) -> None:
    with pytest.raises(QuantmillError) as error:
        parsed(sensitivity=None, recipes=recipes)
    assert str(error.value) == f"config.yaml: {message}"
