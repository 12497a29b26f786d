"""`mtp` of a recipe: the types of the draft head, a file without it, a head alone, and what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from quantmill.errors import QuantmillError
from quantmill.files import read_json
from quantmill.formats.ggufio import Header, encode_u32, read_header
from quantmill.formats.plan import PlanRow, read_plan
from quantmill.model.heads import for_file
from quantmill.progress import Log
from quantmill.recipe import mtp, plan, rules

ROOT = Path(__file__).parents[3]
MTP = ROOT / "tests" / "data" / "tiny-mtp-Q8_0.gguf"
MOE = ROOT / "tests" / "data" / "tiny-moe.gguf"
TEMPLATE = ROOT / "recipes" / "preset.yaml.j2"
VALUES = {"file": "imatrix.gguf", "dataset": None, "chunks": 1}
SEEN = VALUES | {"mtp": True}


def planned(folder: Path, setting: Any, imatrix: Any = SEEN, **recipe: Any) -> list[PlanRow]:
    """The plan of a recipe of template preset."""
    parameters = {"base": "Q4_K_M", **recipe}
    config = {"recipe": "r", "imatrix": imatrix, "parameters": parameters, "mtp": setting}
    files = {"recipe": folder / "r.yaml", "plan": folder / "r.tsv", "report": folder / "r.json"}
    absent = dict.fromkeys(("file", "grids", "allocation"))
    args = argparse.Namespace(spec={"config": config}, model=MTP, template=TEMPLATE, **absent, **files)
    plan.main(args, Log())
    return read_plan(files["plan"])


def of_head(rows: list[PlanRow]) -> dict[str, str]:
    """The types of the head's matrices, without the layer's number."""
    return {row.name[6:-7]: row.type for row in rows if row.layer == 2 and len(row.shape) > 1}


def test_a_type_is_for_all_matrices_of_the_head_and_for_no_other(tmp_path: Path) -> None:
    rows = planned(tmp_path, {"type": "q8_0"})
    assert set(of_head(rows).values()) == {"q8_0"}
    assert {row.reason for row in rows if row.layer == 2 and len(row.shape) > 1} == {
        "rule 1: draft head; already q8_0"
    }
    plain = {row.name: row.type for row in planned(tmp_path, {"nextn": "q6_K"})}
    assert all(row.type == plain[row.name] for row in rows if row.layer != 2)


def test_a_role_comes_before_its_group_and_the_type_for_all_last(tmp_path: Path) -> None:
    types = of_head(planned(tmp_path, {"type": "q6_K", "attention": "q5_k", "attn_v": "q8_0"}))
    assert types["attn_v"] == "q8_0"
    assert {types[name] for name in ("attn_q", "attn_k", "attn_output")} == {"q5_K"}
    assert {types[name] for name in ("ffn_up", "ffn_gate", "ffn_down", "nextn.eh_proj")} == {"q6_K"}


def test_the_rules_of_the_head_come_before_the_recipes_own(tmp_path: Path) -> None:
    planned(tmp_path, {"mtp": "q8_0"}, output="q8_0")
    written = rules.parse((tmp_path / "r.yaml").read_text("utf-8"), "r.yaml")
    assert [(rule.number, rule.roles, rule.layers) for rule in written.rules] == [
        (1, ("nextn",), (2,)),
        (2, ("output",), None),
    ]


def test_the_recipes_own_rules_are_counted_on() -> None:
    recipe = rules.parse("{base: q4_K, rules: [{role: output, type: q8_0, why: large}]}", "r.yaml")
    made = mtp.with_head(recipe, read_header(MTP), {"nextn": "q6_K", "attn_v": "q8_0"}, "recipe r")
    assert [(rule.number, rule.why) for rule in made.rules] == [
        (1, "draft head"),
        (2, "draft head"),
        (3, "large"),
    ]


def test_several_layers_of_a_head_are_all_meant() -> None:
    header = read_header(MTP)
    two = {"qwen35.nextn_predict_layers": encode_u32(2)}
    chained = Header(header.path, header.shards, header.tensors, {**header.kv, **two})
    (rule,) = mtp.head_rules(chained, {"type": "q8_0"}, "mainline", "r.yaml")
    assert rule.matches("blk.1.attn_q.weight") and rule.matches("blk.2.nextn.eh_proj.weight")
    assert not rule.matches("blk.0.attn_q.weight") and not rule.matches("blk.12.attn_q.weight")


def test_a_file_without_the_head_has_the_plan_of_a_model_that_never_had_one(tmp_path: Path) -> None:
    rows = planned(tmp_path, "none")
    assert {row.layer for row in rows} == {-1, 0, 1}
    report = read_json(tmp_path / "r.json")
    assert report["mtp"] == "none" and report["tensors"] == len(rows) == 28
    without = for_file(read_header(MTP), "none")
    assert report["parameters"] == sum(tensor.elements for tensor in without.tensors)


def test_a_head_alone_has_what_stands_outside_the_layers_beside_it(tmp_path: Path) -> None:
    rows = planned(tmp_path, "only", base="Q8_0")
    outside = [row.name for row in rows if row.layer != 2]
    assert outside == ["output.weight", "output_norm.weight", "token_embd.weight"]
    assert len(rows) == 18 and read_json(tmp_path / "r.json")["mtp"] == "only"


def test_a_type_that_needs_values_is_refused_where_the_head_has_none(tmp_path: Path) -> None:
    assert of_head(planned(tmp_path, {"type": "iq2_xs"}))["attn_q"] == "iq2_xs"
    with pytest.raises(QuantmillError) as refused:
        planned(tmp_path, {"type": "iq2_xs"}, VALUES)
    assert str(refused.value) == (
        f"recipe r ({TEMPLATE}): blk.2.attn_k.weight (rule 1: draft head): iq2_xs needs an imatrix, which "
        "no multi-token prediction layer has; set `imatrix: {mtp: true}`, or give the recipe "
        "`mtp: {type: q4_K}` or another such type"
    )


@pytest.mark.parametrize("setting", ["none", "only", {"type": "q8_0"}])
def test_a_model_without_a_head_is_refused(setting: Any) -> None:
    recipe = rules.parse("base: Q4_K_M", "r.yaml")
    with pytest.raises(QuantmillError) as refused:
        mtp.with_head(recipe, read_header(MOE), setting, "recipe r")
    assert str(refused.value) == (
        "recipe r: mtp: the model has no draft head (no layer of multi-token prediction); leave `mtp` out"
    )


@pytest.mark.parametrize(
    ("setting", "engine", "message"),
    [
        (
            {"experts": "q8_0"},
            "mainline",
            "recipe r: mtp.experts: the draft head has no tensor of experts; take one of its roles (attn_k, "
            "attn_output, attn_q, attn_v, ffn_down, ffn_gate, ffn_up, nextn), or `type` for all",
        ),
        (
            {"type": "iq4_ks"},
            "mainline",
            "recipe r: field mtp.type: engine mainline lacks the type iq4_ks; choose a type of mainline "
            "llama.cpp, or engine: ik",
        ),
        (
            {"attention": "Q4_K_M"},
            "mainline",
            "recipe r: field mtp.attention: Q4_K_M is a preset (a mixture), not a type; name a type, such as "
            "q4_K",
        ),
        (
            "only",
            "ik",
            "recipe r: mtp: engine ik takes no draft head in a file of its own; leave it out, or choose a "
            "template of llama.cpp",
        ),
    ],
)
def test_what_is_wrong_is_refused(setting: Any, engine: str, message: str) -> None:
    with pytest.raises(QuantmillError) as refused:
        mtp.check(setting, engine, "recipe r")
        mtp.check_model(read_header(MTP), setting, "recipe r")
    assert str(refused.value) == message


def test_an_unknown_role_is_refused() -> None:
    message = (
        r"^recipe r: mtp: unknown role atention; it takes type, a role such as attn_q, or one of attention,"
    )
    with pytest.raises(QuantmillError, match=message):
        mtp.check({"atention": "q8_0"}, "mainline", "recipe r")


def test_types_are_those_of_the_recipes_engine() -> None:
    recipe = rules.parse("{engine: ik, base: iq3_k}", "r.yaml")
    made = mtp.with_head(recipe, read_header(MTP), {"type": "iq4_ks"}, "recipe r")
    assert made.rules[0].type == "iq4_ks"
