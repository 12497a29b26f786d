"""Recipes fitted to a budget: never a byte above it, and as the ordinary plan stage makes them."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from budget_data import damages_of
from quantmill.budget.allocate import fit
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header
from quantmill.model import memory
from quantmill.recipe import plan, presets, rules

Config = Callable[..., dict[str, Any]]


def planned(
    header: Header, recipe: rules.Recipe, config: dict[str, Any], report: dict[str, Any] | None = None
) -> tuple[dict[str, str], dict[str, Any]]:
    """What the plan stage makes of the recipe's YAML: the type of each tensor, and its report."""
    read = rules.parse(rules.dump(recipe), "fit.yaml")
    imatrix = plan.use_imatrix(read, config["imatrix"] is not None, "fit.yaml")
    mixture = presets.mixture(header, read.base, imatrix=imatrix)
    found = plan.resolve(header, read, mixture, imatrix=imatrix, where="fit.yaml")
    types = {row.name: row.type for row in found.rows if row.name in mixture.quantizable}
    return types, plan.report(header, found, "fit", config["imatrix"], report)


@pytest.mark.parametrize("bpw", [3.7, 4.5, 6.0])
@pytest.mark.parametrize("model", ["llama", "moe"])
def test_the_plan_is_the_allocation(
    model: str, bpw: float, config: Config, request: pytest.FixtureRequest
) -> None:
    header = request.getfixturevalue(model)
    asked = config({"bpw": bpw})
    recipe, report = fit(header, damages_of(header), asked)
    types, found = planned(header, recipe, asked, report)
    proof = ("damage", "objective", "bound", "gap", "predicted_kld", "predicted_se")
    assert found["allocation"] == {field: report[field] for field in proof}
    assert found["file_bytes"] == report["file_bytes"] <= report["budget"]["bytes"]
    assert found["metadata_bytes"] == report["metadata_bytes"]
    assert found["bpw"] == report["bpw"] <= bpw
    assert report["gap"] < 1e-9
    damages = {(row.name, row.type): row for row in damages_of(header)}
    chosen = [damages[item] for item in types.items()]
    assert report["predicted_kld"] == pytest.approx(sum(row.kld for row in chosen))
    assert report["predicted_se"] == pytest.approx(math.sqrt(sum(row.se**2 for row in chosen)))
    assert sum(report["how"].values()) == len(types)
    # gate and up of a layer share a type
    for name, kind in types.items():
        if ".ffn_gate." in name:
            assert types[name.replace("gate", "up")] == kind


def test_nvfp4_is_taken_without_second_scales_as_it_was_measured(llama: Header, config: Config) -> None:
    damages = damages_of(llama, pool=("nvfp4", "q8_0"))
    asked = config({"bpw": 5.5})
    recipe, report = fit(llama, damages, asked)
    types, found = planned(llama, recipe, asked)
    assert {"nvfp4", "q8_0"} == set(types.values())
    assert found["file_bytes"] == report["file_bytes"] and not recipe.scales
    assert fit(llama, damages_of(llama), asked)[0].scales


def test_a_size_is_used_to_the_last_tensor(llama: Header, config: Config) -> None:
    """Where larger is always better, what is left is less than any single step up takes."""
    damages = [replace(row, kld=1 - 1e-9 * row.bytes) for row in damages_of(llama)]
    asked = config({"size": 1_700_000}, harmonize=[])
    recipe, report = fit(llama, damages, asked)
    types, _ = planned(llama, recipe, asked)
    now = {row.name: row.bytes for row in damages if types[row.name] == row.type}
    steps = [row.bytes - now[row.name] for row in damages if row.bytes > now[row.name]]
    assert 0 <= 1_700_000 - report["file_bytes"] < min(steps)


def test_an_exact_size_is_met_and_a_byte_less_is_not_exceeded(llama: Header, config: Config) -> None:
    damages = damages_of(llama)
    _, first = fit(llama, damages, config({"bpw": 5.0}))
    size = first["file_bytes"]
    assert fit(llama, damages, config({"size": size}))[1]["file_bytes"] == size
    assert fit(llama, damages, config({"size": size - 1}))[1]["file_bytes"] < size


def test_the_same_table_in_another_order_gives_the_same_bytes(llama: Header, config: Config) -> None:
    damages = damages_of(llama)
    shuffled = random.Random(3).sample(damages, len(damages))
    made = [fit(llama, table, config({"bpw": 4.5})) for table in (damages, shuffled, damages)]
    assert made[0] == made[1] == made[2]
    assert rules.dump(made[0][0]) == rules.dump(made[1][0])


def test_of_two_types_alike_the_first_by_name_is_taken_in_whatever_order_they_are_given(
    llama: Header, config: Config
) -> None:
    table = [replace(row, kld=0.01) for row in damages_of(llama, pool=("iq4_nl", "q4_0", "q8_0"))]
    made = [
        fit(llama, table, config({"size": 2_000_000}, types=types))[0]
        for types in (["q4_0", "iq4_nl", "q8_0"], ["q8_0", "iq4_nl", "q4_0"])
    ]
    assert made[0] == made[1]
    assert made[0].base.name == "iq4_nl"


def test_out_of_reach_is_said_with_what_is_in_reach(llama: Header, config: Config) -> None:
    _, report = fit(llama, damages_of(llama), config({"bpw": 4.5}))
    least, most = report["least_bytes"], report["most_bytes"]
    for size in (least - 1, most + 1):
        with pytest.raises(QuantmillError) as error:
            fit(llama, damages_of(llama), config({"size": size}))
        assert f"{size:,} bytes" in str(error.value) and "cannot be reached" in str(error.value)
        assert f"{least:,} bytes" in str(error.value) and f"{most:,} bytes" in str(error.value)
    assert fit(llama, damages_of(llama), config({"size": least}))[1]["file_bytes"] == least
    assert fit(llama, damages_of(llama), config({"size": most}))[1]["file_bytes"] <= most


def test_one_type_for_all_needs_no_rule(llama: Header, config: Config) -> None:
    asked = config({"size": 2_850_688}, types=["q8_0", "Q4_0"])
    table = damages_of(llama, pool=("q4_0", "q8_0"))
    recipe, report = fit(llama, table, asked)
    assert (recipe.base.name, recipe.rules) == ("q8_0", ())
    assert planned(llama, recipe, asked)[1]["file_bytes"] == report["file_bytes"]


def test_pins_limits_and_harmony(llama: Header, config: Config) -> None:
    asked = config(
        {"bpw": 5.0},
        pin=[{"role": "token_embd", "type": "Q6_K"}, {"match": r"blk\.1\.ffn_up\.weight", "type": "q3_K"}],
        at_least={"attn_v": "q5_K"},
        at_most={"ffn_down": "iq4_xs"},
        harmonize=[["attn_q", "attn_k", "attn_v"]],
    )
    recipe, report = fit(llama, damages_of(llama), asked)
    types, found = planned(llama, recipe, asked)
    assert found["file_bytes"] == report["file_bytes"]
    assert types["token_embd.weight"] == "q6_K" and types["blk.1.ffn_up.weight"] == "q3_K"
    assert report["pinned"] == ["blk.1.ffn_up.weight", "token_embd.weight"]
    for layer in (0, 1):
        assert types[f"blk.{layer}.attn_v.weight"] in ("q5_K", "q6_K", "q8_0")
        assert len({types[f"blk.{layer}.attn_{x}.weight"] for x in "qkv"}) == 1
        assert types[f"blk.{layer}.ffn_down.weight"] in ("q2_K", "iq3_s", "q3_K", "iq4_xs")
    assert report["harmonized"] == [["attn_q", "attn_k", "attn_v"]]


def test_the_error_table_alone_may_decide(llama: Header, config: Config) -> None:
    draw = random.Random(5)
    table = [replace(row, kld=math.nan, error=draw.random()) for row in damages_of(llama)]
    _, report = fit(llama, table, config({"bpw": 4.5}, damage="error"))
    assert report["damage"] == "error" and report["objective"] > 0 and report["predicted_kld"] is None
    with pytest.raises(QuantmillError, match=r"no type of the pool is left for \S+"):
        fit(llama, table, config({"bpw": 4.5}))


def test_without_an_imatrix_no_type_is_taken_that_needs_one(llama: Header, config: Config) -> None:
    table = damages_of(llama, pool=("iq2_s", "q2_K", "q4_K"))
    free = [replace(row, kld=0.0) if row.type == "iq2_s" else row for row in table]
    with_one, _ = fit(llama, free, config({"size": 1_200_000}))
    assert "iq2_s" in {rule.type for rule in with_one.rules} | {with_one.base.name}
    asked = config({"size": 1_200_000}, imatrix=None)
    recipe, _ = fit(llama, free, asked)
    types, _ = planned(llama, recipe, asked)
    assert {name for name, kind in types.items() if kind == "iq2_s"} <= {"token_embd.weight", "output.weight"}


def test_memory_leaves_what_the_context_does_not_take(llama: Header, config: Config) -> None:
    needed = memory.needs(llama, 1024, "q8_0")
    asked = {"total": needed.total + 3_000_000, "reserve": 1_000_000, "context": 1024, "cache": "q8_0"}
    _, report = fit(llama, damages_of(llama), config({"memory": asked}))
    assert report["budget"]["bytes"] == 2_000_000 == report["memory"]["file"]
    assert report["memory"] == {
        **asked, "kv": needed.kv, "state": 0, "compute": needed.compute, "file": 2_000_000
    }  # fmt: skip
    assert report["file_bytes"] <= 2_000_000
    roomy = fit(llama, damages_of(llama), config({"memory": {**asked, "total": 1 << 30}}))[1]
    assert (
        roomy["file_bytes"] == roomy["most_bytes"]
        and "is the most that the pool can fill" in roomy["warnings"][0]
    )
    small = {**asked, "total": needed.total}
    with pytest.raises(QuantmillError) as error:
        fit(llama, damages_of(llama), config({"memory": small}))
    assert "recipe fit.memory: 8.0 MiB of memory cannot hold it: the file takes 903.9" in str(error.value)
    assert "544.0 KiB, the computation 7.5 MiB, the reserve 976.6 KiB; give it about 9.9" in str(error.value)


def test_a_context_that_the_model_was_not_trained_for_is_warned_of(llama: Header, config: Config) -> None:
    """2,048 tokens: a longer one takes room from the file for nothing."""
    for context, warned in ((2048, False), (2304, True)):
        asked = {"total": 1 << 30, "reserve": 0, "context": context, "cache": "f16"}
        warnings = fit(llama, damages_of(llama), config({"memory": asked}))[1]["warnings"]
        assert any("the model was trained for 2,048" in said for said in warnings) == warned


def test_damages_of_another_way_to_quantize_are_warned_of(llama: Header, config: Config) -> None:
    """Measured with the importance matrix, for a recipe without it; what others measured is theirs."""
    imported = [replace(row, how="imported") for row in damages_of(llama)]
    for table, use, warned in (
        (damages_of(llama), "none", True),
        (damages_of(llama), "optional", False),
        (imported, "none", False),
    ):
        warnings = fit(llama, table, config({"bpw": 5.0}, use_imatrix=use))[1]["warnings"]
        assert any("which this recipe does without" in said for said in warnings) == warned


def test_what_no_budget_wants_is_counted(llama: Header, config: Config) -> None:
    table = [replace(row, kld=1.0) if row.type == "q5_K" else row for row in damages_of(llama)]
    _, report = fit(llama, table, config({"bpw": 4.5}))
    lost = {(row["role"], row["type"]): (row["tensors"], row["of"]) for row in report["dominated"]}
    assert lost["attn_q", "q5_K"] == (2, 2) and lost["output", "q5_K"] == (1, 1)
    assert "q5_K" not in "".join(report["rules"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"types": ["q4_K", "iq4_kt"]}, r"types\[1\]: engine mainline lacks the type iq4_kt"),
        ({"types": ["Q4_K_M"]}, r"types\[0\]: unknown type Q4_K_M"),
        ({"types": ["q4_K", "q5_1"]}, r"types: nothing is known of the type q5_1; leave it out, or add it"),
        ({"at_least": {"attn_z": "q4_K"}}, r"fit\.at_least: unknown role attn_z; did you mean attn_"),
        ({"at_most": {"ffn_up_exps": "q4_K"}}, r"at_most\.ffn_up_exps: .* has the role ffn_up_exps"),
        ({"harmonize": [["ffn_up", "ffn_gatte"]]}, r"\[0\]: unknown role ffn_gatte; did you mean ffn_gate\?"),
        ({"at_least": {"attn_v": "q8_0"}, "types": ["q4_K"]}, r"blk\.0\.attn_v.*at_least: \{attn_v: q8_0"),
        ({"pin": [{"role": "attn_z", "type": "q4_K"}]}, r"pin.*attn_z"),
        ({"pin": [{"role": "output", "layers": [3], "type": "q4_K"}]}, r"pin.*no layer 3"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(llama: Header, config: Config, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(QuantmillError) as error:
        fit(llama, damages_of(llama), config({"bpw": 4.5}, **fields))
    line = str(error.value)
    assert "\n" not in line
    assert re.search(said, line), line


def test_a_tensor_of_unknown_damage_is_named_unless_pinned(llama: Header, config: Config) -> None:
    table = [row for row in damages_of(llama) if row.role != "output"]
    with pytest.raises(QuantmillError, match=r"no damage is known of output\.weight"):
        fit(llama, table, config({"bpw": 5.0}))
    _, report = fit(llama, table, config({"bpw": 5.0}, pin=[{"role": "output", "type": "q6_K"}]))
    assert "1 pinned tensors (output.weight)" in report["warnings"][0]


def test_a_choice_without_a_row_is_never_taken(llama: Header, config: Config) -> None:
    """A probe that failed leaves no row."""
    table = [row for row in damages_of(llama) if (row.name, row.type) != ("output.weight", "q4_K")]
    for bpw in (4.0, 4.5, 5.0):
        assert r"^output\.weight$=q4_K" not in fit(llama, table, config({"bpw": bpw}))[1]["rules"]
