"""Recipes in common forms: no tensor changes when they are written and read, and errors name the line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import headers as shapes
import native
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, encode_u32, read_header, serialize
from quantmill.formats.plan import PlanRow, write_plan
from quantmill.formats.types import known
from quantmill.model.header import read_source
from quantmill.recipe import plan, presets, rules
from quantmill.recipe.interchange import FORMS, clone, lines_of, read, to_text
from quantmill.recipe.render import facts, render

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
LLAMA, MOE = DATA / "tiny-llama.gguf", DATA / "tiny-moe.gguf"
RULES = {
    "mainline": "base: Q4_K_M\nrules: [{role: [ffn_down, ffn_down_exps], layers: [1], type: q8_0},"
    " {role: [attn_q, attn_qkv], type: iq4_nl}, {role: token_embd, type: bf16}]",
    "ik": "engine: ik\nbase: iq4_kt\nrules: [{role: output, type: q6_0},"
    " {role: [ffn_up, ffn_up_exps], type: iq3_k}]",
}


def planned(header: Header, text: str) -> list[PlanRow]:
    recipe = rules.parse(text, "r.yaml")
    mixture = presets.mixture(header, recipe.base, imatrix=True)
    return list(plan.resolve(header, recipe, mixture, imatrix=True, where="r.yaml").rows)


def imported(path: Path, form: str, header: Header, **parameters: Any) -> str:
    """The recipe that the template makes of a file."""
    template = (ROOT / "recipes" / "import.yaml.j2").read_text("utf-8")
    more = {"recipe": "x", "imported": read(path, form, header)}
    return render(template, parameters, facts(header) | more, "import.yaml.j2")


def types(rows: list[PlanRow]) -> dict[str, str]:
    return {row.name: row.type for row in rows}


@pytest.mark.parametrize("engine", RULES)
@pytest.mark.parametrize("form", FORMS[:3])
@pytest.mark.parametrize("model", [LLAMA, MOE])
def test_a_round_trip_changes_no_tensor(tmp_path: Path, model: Path, form: str, engine: str) -> None:
    header = read_header(model)
    rows = planned(header, RULES[engine])
    path = tmp_path / "recipe.txt"
    path.write_text(to_text(rows, form), encoding="utf-8")
    again = imported(path, form, header)
    assert types(planned(header, again)) == types(rows)
    assert to_text(planned(header, again), form) == path.read_text("utf-8")
    assert rules.parse(again, "r").engine == engine


def test_llama_quantize_takes_what_is_exported(tmp_path: Path) -> None:
    header = read_header(MOE)
    rows = planned(header, RULES["mainline"])
    out = tmp_path / "out.gguf"
    native.quantize(MOE, out, presets.PRESETS["Q4_K_M"], None, None, overrides=lines_of(rows, "tensor-types"))
    assert {tensor.name: tensor.type for tensor in read_header(out).tensors} == types(rows)


def test_layers_of_one_type_stand_together() -> None:
    rows = planned(read_header(LLAMA), "base: q4_K\nrules: [{role: ffn_down, layers: [0], type: q8_0}]")
    lines = lines_of(rows, "custom-q")
    assert r"^blk\.[0-9]+\.attn_q\.weight$=q4_K" in lines
    assert r"^blk\.0\.ffn_down\.weight$=q8_0" in lines
    assert not any("norm" in line for line in lines)
    assert any("output_norm" in line for line in lines_of(rows, "regex"))


SUITE = r"""
## Model head & embeddings
^output\.weight$=q6_K
^token_embd\.weight$=IQ4_NL

# attention, gate and the rest
^blk\.([0-9]|1[0-9])\.attn_(q|k)\.weight$=q5_K
.*norm.*=f32
ffn_down=q4_0
^blk\.0\.ffn_down\.weight$=q8_0
^blk\..*\.weight$=q4_K
"""


def test_lines_as_ggufs_tool_suite_writes_them(tmp_path: Path) -> None:
    path, header = tmp_path / "x.recipe", read_header(LLAMA)
    path.write_text(SUITE, encoding="utf-8")
    recipe = read(path, "regex", header)
    assert (recipe.engine, recipe.base) == ("mainline", "q4_K")
    assert recipe.notes == [
        "line 10 of the imported file is shadowed by earlier ones and left out: "
        r"^blk\.0\.ffn_down\.weight$=q8_0"
    ]
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(SUITE.encode(encoding))
        assert read(path, "regex", header) == recipe
    rows = types(planned(header, imported(path, "regex", header)))
    assert rows["blk.0.ffn_down.weight"] == "q4_0"
    assert rows["blk.1.attn_k.weight"] == "q5_K"
    assert rows["blk.1.attn_v.weight"] == "q4_K"
    assert rows["token_embd.weight"] == "iq4_nl"
    assert rows["blk.0.attn_norm.weight"] == "f32"


@pytest.mark.parametrize(
    ("form", "text", "kinds"),
    [
        ("custom-q", r"attn_v=q6_K,blk\.0\..*=q5_K", ("q6_K", "q5_K", "q4_K")),
        ("custom-q", "blk\\.0\\..*=q5_K,\nattn_v=q6_K", ("q5_K", "q5_K", "q4_K")),
        ("tensor-types", "ATTN_V=q6_k\n  blk\\.0\\..*=Q5_K", ("q6_K", "q5_K", "q4_K")),
        ("regex", "^blk.0.attn_v|^blk.0.ffn=q8_0", ("q8_0", "q8_0", "q4_K")),
    ],
)
def test_patterns_are_searched_for_and_the_first_decides(
    tmp_path: Path, form: str, text: str, kinds: tuple[str, ...]
) -> None:
    path, header = tmp_path / "x", read_header(LLAMA)
    path.write_text(text, encoding="utf-8")
    rows = types(planned(header, imported(path, form, header, base="q4_K")))
    assert (rows["blk.0.attn_v.weight"], rows["blk.0.ffn_up.weight"], rows["blk.1.ffn_up.weight"]) == kinds


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("regex", "a\n^blk(=q4_K", r"x: line 1: a is no pattern=type; such as"),
        ("regex", "\n^blk(=q4_K", r"x: line 2: \^blk\( is no regular expression \(missing \)"),
        ("regex", r"^blk\.99\.attn_q\.weight$=q4_K", r"line 1: \^blk.* matches no tensor; remove it"),
        ("regex", "sideways=q4_K", "line 1: sideways matches no tensor"),
        ("custom-q", "attn=q4_K,ffn=q9_Z", "entry 2: unknown type q9_Z"),
        ("tensor-types", "# comment=q4_K", "entry 1: # is no pattern=type"),
        ("regex", "attn=Q4_K_M", "line 1: unknown type Q4_K_M"),
        ("yaml", "x", "unknown form yaml; it is one of regex, tensor-types, custom-q, gguf"),
    ],
)
def test_a_wrong_line_is_refused(tmp_path: Path, form: str, text: str, message: str) -> None:
    path = tmp_path / "x"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QuantmillError, match=message):
        read(path, form, read_header(LLAMA))


def test_a_file_that_leaves_weights_to_a_base_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("attn_v=q6_K", encoding="utf-8")
    with pytest.raises(QuantmillError, match="leaves some weights to a base; give the recipe one"):
        imported(path, "custom-q", read_header(LLAMA))


def test_projections_about_a_convolution_are_weights_like_any_other(tmp_path: Path) -> None:
    header, path = read_header(LLAMA), tmp_path / "x"
    inner = [(f"blk.0.shortconv.{part}.weight", 1, (256, 256)) for part in ("in_proj", "out_proj")]
    listed = [(t.name, t.type_id, t.shape) for t in header.tensors]
    (tmp_path / "m.gguf").write_bytes(serialize(header.kv, [*listed, *inner]))
    path.write_text("attn=q6_K,ffn=q4_K,token_embd=q8_0,output=q8_0", encoding="utf-8")
    assert read(path, "custom-q", header).base == "q6_K"
    assert read(path, "custom-q", read_header(tmp_path / "m.gguf", data=False)).base is None


def retyped(source: Header, rows: list[PlanRow], path: Path) -> Header:
    """A header-only GGUF of the plan."""
    path.write_bytes(serialize(source.kv, [(row.name, known(row.type).id, row.shape) for row in rows]))
    return read_header(path, data=False)


@pytest.mark.parametrize("engine", RULES)
def test_a_clone_of_a_quant_of_the_same_model(tmp_path: Path, engine: str) -> None:
    header = read_header(MOE)
    rows = planned(header, RULES[engine])
    retyped(header, rows, tmp_path / "other.gguf")
    text = imported(tmp_path / "other.gguf", "gguf", header)
    assert types(planned(header, text)) == types(rows)
    assert "notes" not in text


@pytest.mark.parametrize("preset", ["Q8_0", "Q4_K_M"])
def test_the_types_of_a_plain_preset_can_be_had_too(tmp_path: Path, preset: str) -> None:
    header = read_header(LLAMA)
    rows = planned(header, f"base: {preset}")
    other = retyped(header, rows, tmp_path / "other.gguf").kv
    number = {"general.file_type": encode_u32(presets.PRESETS[preset])}
    listed = [(row.name, known(row.type).id, row.shape) for row in rows]
    (tmp_path / "other.gguf").write_bytes(serialize({**other, **number}, listed))
    (tmp_path / "lines").write_text(to_text(rows, "regex"), encoding="utf-8")
    for form, file in (("gguf", "other.gguf"), ("regex", "lines")):
        text = imported(tmp_path / file, form, header, base=preset)
        assert types(planned(header, text)) == types(rows)
    assert f"base: {preset}" in imported(tmp_path / "other.gguf", "gguf", header)


def test_a_clone_of_a_model_with_other_layers(tmp_path: Path) -> None:
    large = read_source(shapes.qwen35(tmp_path / "large.gguf"))
    deep = "base: q4_K\nrules: [{role: ffn_down, layers: [0, 1, 62, 63], type: q8_0},"
    deep += " {role: attn_v, type: q6_K}]"
    other = retyped(large, planned(large, deep), tmp_path / "other.gguf")
    small = read_source(shapes.qwen35(tmp_path / "small.gguf", layers=16, mtp=True))
    cloned = clone(small, other)
    text = json.dumps({"base": cloned.base, "notes": cloned.notes, "rules": cloned.rules})
    rows = types(planned(small, text))
    downs = [rows[f"blk.{layer}.ffn_down.weight"] for layer in (0, 1, 8, 15)]
    assert downs == ["q8_0", "q4_K", "q4_K", "q8_0"]
    assert {rows[f"blk.{layer}.attn_v.weight"] for layer in (3, 7, 11, 15)} == {"q6_K"}
    assert len(cloned.notes) == 1
    assert "other.gguf has no attn_q (1), attn_k (1)" in cloned.notes[0]
    assert r"blk.*.nextn.eh_proj.weight (1)" in cloned.notes[0]
    recipe = rules.parse(text, "r")
    mixture = presets.mixture(small, recipe.base, imatrix=True)
    back = clone(large, retyped(small, planned(small, text), tmp_path / "back.gguf"))
    assert back.notes[0].startswith("back.gguf also has attn_k (1), attn_output (1), attn_q (1), ")
    assert back.notes[0].endswith("which the model has not") and len(back.notes) == 1
    assert cloned.notes[0] in plan.resolve(small, recipe, mixture, imatrix=True, where="r").warnings


def test_a_clone_whose_roles_do_not_map_is_refused(tmp_path: Path) -> None:
    header = read_header(LLAMA)
    rows = [(f"blk.{n}.ssm_out.weight", known("q4_K").id, (256, 8)) for n in range(2)]
    path = tmp_path / "other.gguf"
    path.write_bytes(serialize(header.kv, rows))
    with pytest.raises(QuantmillError, match=r"other.gguf: none of its quantized tensors has a role that"):
        read(path, "gguf", header)
    with pytest.raises(QuantmillError, match=r"tiny-moe.gguf: nothing in it is quantized"):
        read(MOE, "gguf", header)


def command(*words: Any) -> subprocess.CompletedProcess[str]:
    module = [sys.executable, "-m", "quantmill.recipe.interchange"]
    return subprocess.run([*module, *map(str, words)], capture_output=True, text=True)


def test_the_commands(tmp_path: Path) -> None:
    header = read_header(LLAMA)
    rows = planned(header, RULES["mainline"])
    write_plan(tmp_path / "plan.tsv", rows)
    lines, recipe = tmp_path / "lines", tmp_path / "recipe.yaml"
    done = command("export", "--plan", tmp_path / "plan.tsv", "--form", "regex", "--out", lines)
    assert done.returncode == 0, done.stderr
    words = ("--form", "regex", "--model", LLAMA, "--out", recipe)
    done = command("import", "--file", lines, *words)
    assert done.returncode == 0, done.stderr
    assert types(planned(header, recipe.read_text("utf-8"))) == types(rows)
    lines.write_text("(=q4_K", encoding="utf-8")
    done = command("import", "--file", lines, *words)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: {lines}: line 1: ( is no regular expression")
