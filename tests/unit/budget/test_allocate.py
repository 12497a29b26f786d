"""Size-targeted recipes: never a byte above the budget, and the plan stage makes the same of them."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from budget_data import sensitivity_of
from quantmill.budget import candidates
from quantmill.budget.allocate import size_targeted
from quantmill.errors import QuantmillError
from quantmill.formats import types as known_types
from quantmill.formats.ggufio import Header
from quantmill.formats.manifest import ManifestRow, write_manifest
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
    resolved = plan.resolve(header, read, mixture, imatrix=imatrix, where="fit.yaml")
    types = {row.name: row.type for row in resolved.rows if row.name in mixture.quantizable}
    return types, plan.report(header, resolved, "fit", config["imatrix"], report)


@pytest.mark.parametrize("bpw", [3.7, 4.5, 6.0])
@pytest.mark.parametrize("model", ["llama", "moe"])
def test_the_plan_is_the_allocation(
    model: str, bpw: float, config: Config, request: pytest.FixtureRequest
) -> None:
    header = request.getfixturevalue(model)
    spec = config({"bpw": bpw})
    recipe, report = size_targeted(header, sensitivity_of(header), spec)
    types, planned_report = planned(header, recipe, spec, report)
    proof = ("damage", "objective", "bound", "gap", "predicted_kld", "predicted_se")
    assert planned_report["allocation"] == {field: report[field] for field in proof}
    assert planned_report["file_bytes"] == report["file_bytes"] <= report["budget"]["bytes"]
    assert planned_report["metadata_bytes"] == report["metadata_bytes"]
    assert planned_report["bpw"] == report["bpw"] <= bpw
    assert report["gap"] < 1e-9
    by_type = {(row.name, row.type): row for row in sensitivity_of(header)}
    chosen = [by_type[item] for item in types.items()]
    assert report["predicted_kld"] == pytest.approx(sum(row.kld for row in chosen))
    assert report["predicted_se"] == pytest.approx(math.sqrt(sum(row.se**2 for row in chosen)))
    assert sum(report["how"].values()) == len(types)
    # gate and up of a layer share a type
    for name, kind in types.items():
        if ".ffn_gate." in name:
            assert types[name.replace("gate", "up")] == kind


def test_nvfp4_is_taken_without_per_tensor_scales_as_it_was_measured(llama: Header, config: Config) -> None:
    table = sensitivity_of(llama, types=("nvfp4", "q8_0"))
    spec = config({"bpw": 5.5})
    recipe, report = size_targeted(llama, table, spec)
    types, planned_report = planned(llama, recipe, spec)
    assert {"nvfp4", "q8_0"} == set(types.values())
    assert planned_report["file_bytes"] == report["file_bytes"] and not recipe.scales
    assert size_targeted(llama, sensitivity_of(llama), spec)[0].scales


def test_a_size_is_used_to_the_last_tensor(llama: Header, config: Config) -> None:
    """Where larger is always better, what is left is less than any single step up takes."""
    table = [replace(row, kld=1 - 1e-9 * row.bytes) for row in sensitivity_of(llama)]
    spec = config({"size": 1_700_000}, harmonize=[])
    recipe, report = size_targeted(llama, table, spec)
    types, _ = planned(llama, recipe, spec)
    now = {row.name: row.bytes for row in table if types[row.name] == row.type}
    steps = [row.bytes - now[row.name] for row in table if row.bytes > now[row.name]]
    assert 0 <= 1_700_000 - report["file_bytes"] < min(steps)


def test_an_exact_size_is_met_and_a_byte_less_is_not_exceeded(llama: Header, config: Config) -> None:
    table = sensitivity_of(llama)
    _, first = size_targeted(llama, table, config({"bpw": 5.0}))
    size = first["file_bytes"]
    assert size_targeted(llama, table, config({"size": size}))[1]["file_bytes"] == size
    assert size_targeted(llama, table, config({"size": size - 1}))[1]["file_bytes"] < size


def test_the_same_table_in_another_order_gives_the_same_bytes(llama: Header, config: Config) -> None:
    table = sensitivity_of(llama)
    shuffled = random.Random(3).sample(table, len(table))
    made = [size_targeted(llama, rows, config({"bpw": 4.5})) for rows in (table, shuffled, table)]
    assert made[0] == made[1] == made[2]
    assert rules.dump(made[0][0]) == rules.dump(made[1][0])


def test_of_two_types_alike_the_first_by_name_is_taken_in_whatever_order_they_are_given(
    llama: Header, config: Config
) -> None:
    table = [replace(row, kld=0.01) for row in sensitivity_of(llama, types=("iq4_nl", "q4_0", "q8_0"))]
    made = [
        size_targeted(llama, table, config({"size": 2_000_000}, types=types))[0]
        for types in (["q4_0", "iq4_nl", "q8_0"], ["q8_0", "iq4_nl", "q4_0"])
    ]
    assert made[0] == made[1]
    assert made[0].base.name == "iq4_nl"


def test_a_size_out_of_range_is_refused_with_the_range(llama: Header, config: Config) -> None:
    _, report = size_targeted(llama, sensitivity_of(llama), config({"bpw": 4.5}))
    least, most = report["least_bytes"], report["most_bytes"]
    for size in (least - 1, most + 1):
        with pytest.raises(QuantmillError) as error:
            size_targeted(llama, sensitivity_of(llama), config({"size": size}))
        assert f"{size:,} bytes" in str(error.value) and "cannot be reached" in str(error.value)
        assert f"{least:,} bytes" in str(error.value) and f"{most:,} bytes" in str(error.value)
    assert size_targeted(llama, sensitivity_of(llama), config({"size": least}))[1]["file_bytes"] == least
    assert size_targeted(llama, sensitivity_of(llama), config({"size": most}))[1]["file_bytes"] <= most


def test_one_type_for_all_needs_no_rule(llama: Header, config: Config) -> None:
    spec = config({"size": 2_850_688}, types=["q8_0", "Q4_0"])
    table = sensitivity_of(llama, types=("q4_0", "q8_0"))
    recipe, report = size_targeted(llama, table, spec)
    assert (recipe.base.name, recipe.rules) == ("q8_0", ())
    assert planned(llama, recipe, spec)[1]["file_bytes"] == report["file_bytes"]


def test_pins_limits_and_harmony(llama: Header, config: Config) -> None:
    spec = config(
        {"bpw": 5.0},
        pin=[{"role": "token_embd", "type": "Q6_K"}, {"match": r"blk\.1\.ffn_up\.weight", "type": "q3_K"}],
        at_least={"attn_v": "q5_K"},
        at_most={"ffn_down": "iq4_xs"},
        harmonize=[["attn_q", "attn_k", "attn_v"]],
    )
    recipe, report = size_targeted(llama, sensitivity_of(llama), spec)
    types, planned_report = planned(llama, recipe, spec)
    assert planned_report["file_bytes"] == report["file_bytes"]
    assert types["token_embd.weight"] == "q6_K" and types["blk.1.ffn_up.weight"] == "q3_K"
    assert report["pinned"] == ["blk.1.ffn_up.weight", "token_embd.weight"]
    for layer in (0, 1):
        assert types[f"blk.{layer}.attn_v.weight"] in ("q5_K", "q6_K", "q8_0")
        assert len({types[f"blk.{layer}.attn_{x}.weight"] for x in "qkv"}) == 1
        assert types[f"blk.{layer}.ffn_down.weight"] in ("q2_K", "iq3_s", "q3_K", "iq4_xs")
    assert report["harmonized"] == [["attn_q", "attn_k", "attn_v"]]


def test_the_error_table_alone_may_decide(llama: Header, config: Config) -> None:
    draw = random.Random(5)
    table = [replace(row, kld=math.nan, error=draw.random()) for row in sensitivity_of(llama)]
    _, report = size_targeted(llama, table, config({"bpw": 4.5}, damage="error"))
    assert report["damage"] == "error" and report["objective"] > 0 and report["predicted_kld"] is None
    with pytest.raises(QuantmillError, match=r"no candidate type is left for \S+"):
        size_targeted(llama, table, config({"bpw": 4.5}))


def test_without_an_imatrix_no_type_is_taken_that_needs_one(llama: Header, config: Config) -> None:
    table = sensitivity_of(llama, types=("iq2_s", "q2_K", "q4_K"))
    free = [replace(row, kld=0.0) if row.type == "iq2_s" else row for row in table]
    with_one, _ = size_targeted(llama, free, config({"size": 1_200_000}))
    assert "iq2_s" in {rule.type for rule in with_one.rules} | {with_one.base.name}
    spec = config({"size": 1_200_000}, imatrix=None)
    recipe, _ = size_targeted(llama, free, spec)
    types, _ = planned(llama, recipe, spec)
    assert {name for name, kind in types.items() if kind == "iq2_s"} <= {"token_embd.weight", "output.weight"}


def test_memory_leaves_what_the_context_does_not_take(llama: Header, config: Config) -> None:
    needed = memory.needs(llama, 1024, "q8_0")
    device = {"total": needed.total + 3_000_000, "reserve": 1_000_000, "context": 1024, "cache": "q8_0"}
    _, report = size_targeted(llama, sensitivity_of(llama), config({"memory": device}))
    assert report["budget"]["bytes"] == 2_000_000 == report["memory"]["file"]
    assert report["memory"] == {
        **device,
        "kv": needed.kv,
        "state": 0,
        "compute": needed.compute,
        "file": 2_000_000,
    }
    assert report["file_bytes"] <= 2_000_000
    roomy = size_targeted(llama, sensitivity_of(llama), config({"memory": {**device, "total": 1 << 30}}))[1]
    assert (
        roomy["file_bytes"] == roomy["most_bytes"]
        and "is the most that the candidate types can fill" in roomy["warnings"][0]
    )
    small = {**device, "total": needed.total}
    with pytest.raises(QuantmillError) as error:
        size_targeted(llama, sensitivity_of(llama), config({"memory": small}))
    assert "recipe fit.memory: 8.0 MiB of memory cannot hold it: the file takes 903.9" in str(error.value)
    assert "544.0 KiB, the computation 7.5 MiB, the reserve 976.6 KiB; give it about 9.9" in str(error.value)


def test_a_context_that_the_model_was_not_trained_for_is_warned_of(llama: Header, config: Config) -> None:
    """2,048 tokens: a longer one takes room from the file for nothing."""
    for context, warned in ((2048, False), (2304, True)):
        device = {"total": 1 << 30, "reserve": 0, "context": context, "cache": "f16"}
        warnings = size_targeted(llama, sensitivity_of(llama), config({"memory": device}))[1]["warnings"]
        assert any("the model was trained for 2,048" in text for text in warnings) == warned


def test_sensitivities_of_another_way_to_quantize_are_warned_of(llama: Header, config: Config) -> None:
    """Measured with the importance matrix, for a recipe without it; what others measured is theirs."""
    imported = [replace(row, how="imported") for row in sensitivity_of(llama)]
    for rows, use, warned in (
        (sensitivity_of(llama), "none", True),
        (sensitivity_of(llama), "optional", False),
        (imported, "none", False),
    ):
        warnings = size_targeted(llama, rows, config({"bpw": 5.0}, use_imatrix=use))[1]["warnings"]
        assert any("which this recipe does without" in text for text in warnings) == warned


def test_dominated_choices_are_counted(llama: Header, config: Config) -> None:
    table = [replace(row, kld=1.0) if row.type == "q5_K" else row for row in sensitivity_of(llama)]
    _, report = size_targeted(llama, table, config({"bpw": 4.5}))
    lost = {(row["role"], row["type"]): (row["tensors"], row["of"]) for row in report["dominated"]}
    assert lost["attn_q", "q5_K"] == (2, 2) and lost["output", "q5_K"] == (1, 1)
    assert "q5_K" not in "".join(report["rules"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"types": ["q4_K", "iq4_kt"]}, r"types\[1\]: engine mainline lacks the type iq4_kt"),
        ({"types": ["Q4_K_M"]}, r"types\[0\]: unknown type Q4_K_M"),
        ({"types": ["q4_K", "q5_1"]}, r"types: the type q5_1 has no sensitivities; leave it out, or add it"),
        ({"at_least": {"attn_z": "q4_K"}}, r"fit\.at_least: unknown role attn_z; did you mean attn_"),
        ({"at_most": {"ffn_up_exps": "q4_K"}}, r"at_most\.ffn_up_exps: .* has the role ffn_up_exps"),
        ({"harmonize": [["ffn_up", "ffn_gatte"]]}, r"\[0\]: unknown role ffn_gatte; did you mean ffn_gate\?"),
        ({"at_least": {"attn_v": "q8_0"}, "types": ["q4_K"]}, r"blk\.0\.attn_v.*at_least: \{attn_v: q8_0"),
        ({"pin": [{"role": "attn_z", "type": "q4_K"}]}, r"pin.*attn_z"),
        ({"pin": [{"role": "output", "layers": [3], "type": "q4_K"}]}, r"pin.*no layer 3"),
    ],
)
def test_wrong_fields_are_named(llama: Header, config: Config, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantmillError) as error:
        size_targeted(llama, sensitivity_of(llama), config({"bpw": 4.5}, **fields))
    line = str(error.value)
    assert "\n" not in line
    assert re.search(message, line), line


def test_a_tensor_without_sensitivity_is_named_unless_pinned(llama: Header, config: Config) -> None:
    table = [row for row in sensitivity_of(llama) if row.role != "output"]
    with pytest.raises(QuantmillError, match=r"output\.weight has no sensitivity"):
        size_targeted(llama, table, config({"bpw": 5.0}))
    _, report = size_targeted(llama, table, config({"bpw": 5.0}, pin=[{"role": "output", "type": "q6_K"}]))
    assert "1 pinned tensors (output.weight)" in report["warnings"][0]


def test_a_choice_without_a_row_is_never_taken(llama: Header, config: Config) -> None:
    """A probe that failed leaves no row."""
    table = [row for row in sensitivity_of(llama) if (row.name, row.type) != ("output.weight", "q4_K")]
    for bpw in (4.0, 4.5, 5.0):
        assert r"^output\.weight$=q4_K" not in size_targeted(llama, table, config({"bpw": bpw}))[1]["rules"]


def test_a_budget_of_fed_back_errors_takes_only_types_with_a_grid(
    llama: Header, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imported sensitivities may be of any type."""
    monkeypatch.setattr(known_types, "FED_BACK", known_types.FED_BACK - {"iq3_s"})
    table, spec = sensitivity_of(llama), config({"bpw": 3.5})
    assert "iq3_s" in size_targeted(llama, table, spec)[1]["types"]
    recipe, report = size_targeted(llama, table, spec | {"rounding": "gptq"})
    assert report["types"] == [
        kind for kind in size_targeted(llama, table, spec)[1]["types"] if kind != "iq3_s"
    ]
    assert "iq3_s" not in planned(llama, recipe, spec, report)[0].values()


def test_the_types_with_a_grid_are_those_of_the_engine() -> None:
    takes = {engine: candidates.Settings(engine=engine, fed_back=True).takes for engine in ("mainline", "ik")}
    assert takes["ik"] - takes["mainline"] == known_types.fed_back("ik") - known_types.FED_BACK
    assert takes["mainline"] - takes["ik"] == {"nvfp4"}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"types": ["q4_K", "iq3_s"]}, r"types\[1\]"),
        ({"pin": [{"role": "ffn_up", "type": "q8_0"}, {"role": "output", "type": "IQ3_S"}]}, r"pin\[1\]"),
    ],
)
def test_a_type_without_a_grid_is_refused_where_errors_are_fed_back(
    config: Config, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], place: str
) -> None:
    monkeypatch.setattr(known_types, "FED_BACK", known_types.FED_BACK - {"iq3_s"})
    spec = config({"bpw": 4.5}, **fields)
    candidates.check(spec, "fit")
    message = (
        rf"^fit\.{place}: iq3_s has no grid .* fed back; choose another type, or give the recipe rounding:"
    )
    with pytest.raises(QuantmillError, match=message):
        candidates.check(spec | {"rounding": "gptq"}, "fit")


def test_a_type_of_ik_without_a_grid_is_refused_and_one_with_it_is_not(config: Config) -> None:
    spec = config({"bpw": 4.5}, engine="ik", rounding="gptq")
    pins = [{"role": "output", "type": "iq5_ks"}, {"role": "ffn_up", "type": "iq4_kss"}]
    candidates.check(spec | {"types": ["iq3_k", "iq4_ks", "q8_0"], "pin": pins[:1]}, "fit")
    with pytest.raises(QuantmillError, match=r"^fit\.types\[1\]: iq2_kt has no grid to which errors can be "):
        candidates.check(spec | {"types": ["iq3_k", "iq2_kt"]}, "fit")
    with pytest.raises(QuantmillError, match=r"^fit\.pin\[1\]: iq4_kss has no grid to which errors can be "):
        candidates.check(spec | {"pin": pins}, "fit")


def test_a_grid_that_is_kept_costs_nothing(llama: Header, config: Config, tmp_path: Path) -> None:
    """It is chosen at any budget that has room for it, though no sensitivity is of its type."""
    table, on_grid = sensitivity_of(llama), {"blk.0.ffn_down.weight", "blk.1.ffn_up.weight"}
    manifest = [ManifestRow(t.name, "", 0, t.shape, t.type, t.bytes, "ab") for t in llama.tensors]
    write_manifest(tmp_path / "manifest.tsv", manifest, dict.fromkeys(on_grid, "q4_0"))
    spec = config({"bpw": 6.0}, harmonize=[], keep="grid")
    recipe, report = size_targeted(llama, table, spec, tmp_path / "manifest.tsv")
    types, _ = planned(llama, recipe, spec)
    assert {name for name, kind in types.items() if kind == "q4_0"} == on_grid
    assert report["how"]["kept"] == 2 and {types[name] for name in on_grid} == {"q4_0"}
    _, without = size_targeted(llama, table, config({"bpw": 6.0}, harmonize=[]))
    assert report["objective"] < without["objective"]
    costs = [row.kld for row in table if types[row.name] == row.type]
    assert report["objective"] == pytest.approx(sum(costs))


def test_a_grid_may_be_left_where_the_budget_is_too_small(
    llama: Header, config: Config, tmp_path: Path
) -> None:
    manifest = [ManifestRow(t.name, "", 0, t.shape, t.type, t.bytes, "ab") for t in llama.tensors]
    names = [row.name for row in sensitivity_of(llama)]
    write_manifest(tmp_path / "manifest.tsv", manifest, dict.fromkeys(names, "q4_0"))
    spec = config({"bpw": 4.0}, keep="grid")
    recipe, report = size_targeted(llama, sensitivity_of(llama), spec, tmp_path / "manifest.tsv")
    kinds = set(planned(llama, recipe, spec)[0].values())
    assert "q4_0" in kinds and kinds - {"q4_0"} and report["file_bytes"] <= report["budget"]["bytes"]
