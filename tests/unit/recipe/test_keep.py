"""`keep: grid` in a plan: what keeps its values, what cannot, and what is refused."""

from pathlib import Path

import pytest

import grids as example
import headers
import models
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.manifest import ManifestRow, write_manifest
from quantmill.formats.plan import PlanRow
from quantmill.model.header import read_source
from quantmill.recipe import presets, rules
from quantmill.recipe.keep import Kept, kept
from quantmill.recipe.plan import resolve

LLAMA = Path(__file__).parents[2] / "data" / "tiny-llama.gguf"


def manifest(folder: Path, header: Header, grids: dict[str, str]) -> Path:
    rows = [ManifestRow(t.name, "", 0, t.shape, t.type, t.bytes, "ab") for t in header.tensors]
    write_manifest(folder / "manifest.tsv", rows, grids)
    return folder / "manifest.tsv"


def test_a_tensor_on_a_grid_gets_its_type_and_others_those_of_the_recipe(tmp_path: Path) -> None:
    header = read_header(LLAMA)
    on_grids = {"blk.0.attn_q.weight": "q4_0", "blk.1.attn_q.weight": "mxfp4", "output.weight": "fp8"}
    keep = kept(header, manifest(tmp_path, header, on_grids), "mainline", "r.yaml")
    recipe = rules.parse("base: Q6_K\nrules: [{role: attn_q, type: q8_0}]", "r.yaml")
    mixture = presets.mixture(header, recipe.base, imatrix=False)
    plan = resolve(header, recipe, mixture, imatrix=False, where="r.yaml", keep=keep.types)
    rows = {row.name: row for row in plan.rows}
    assert (rows["blk.0.attn_q.weight"].type, rows["blk.1.attn_q.weight"].type) == ("q4_0", "mxfp4")
    assert rows["blk.0.attn_q.weight"].reason == "on the grid of q4_0, which is kept"
    assert rows["output.weight"].type == "q6_K"
    assert keep.counted(plan.rows) == {"mxfp4": 1, "q4_0": 1}
    assert keep.warnings == [
        "1 tensors lie on the grid of fp8, which no type of the engine has: "
        "they are rounded as the recipe says"
    ]


def test_tensors_that_are_quantized_stay_as_they_are(tmp_path: Path) -> None:
    header = read_header(models.write_llama(tmp_path / "m.gguf", width=64, quantized="q5_1"))
    keep = kept(header, manifest(tmp_path, header, {}), "mainline", "r.yaml")
    assert set(keep.types.values()) == {"q5_1"}
    recipe = rules.parse("base: q8_0", "r.yaml")
    mixture = presets.mixture(header, recipe.base, imatrix=False)
    plan = resolve(header, recipe, mixture, imatrix=False, where="r.yaml", keep=keep.types)
    assert {row.type for row in plan.rows if len(row.shape) > 1} == {"q5_1"}
    assert not [warning for warning in plan.warnings if "quantized again" in warning]


def test_a_plan_at_the_real_size_of_a_model_on_a_grid(tmp_path: Path) -> None:
    """gpt-oss-20b: its MXFP4 experts as they are, all else Q8_0. Without `keep` Q8_0
    would round the experts to twice their bits.
    """
    header = read_source(headers.gpt_oss(tmp_path / "gpt-oss-20b.gguf"))
    keep = kept(header, manifest(tmp_path, header, {}), "mainline", "r.yaml")
    recipe = rules.parse("base: Q8_0", "r.yaml")
    mixture = presets.mixture(header, recipe.base, imatrix=False)
    sizes = []
    for types in (keep.types, {}):
        plan = resolve(header, recipe, mixture, imatrix=False, where="r.yaml", keep=types)
        sizes.append(sum(row.bytes for row in plan.rows))
    assert set(keep.types) == {row.name for row in plan.rows if row.name.endswith("_exps.weight")}
    assert len(keep.types) == 3 * 24 and set(keep.types.values()) == {"mxfp4"}
    assert [round(size / 1e9, 2) for size in sizes] == [12.1, 22.25]


def test_without_a_manifest_nothing_is_kept() -> None:
    assert kept(read_header(LLAMA), None, "mainline", "r.yaml") == Kept()


def test_a_row_says_that_its_grid_is_kept() -> None:
    keep = Kept({"a": "q4_0", "b": "q4_0"})
    rows = [
        PlanRow(name, "", 0, (32, 1), "bf16", kind, 1, "rule 1")
        for name, kind in (("a", "q4_0"), ("b", "q3_K"))
    ]
    assert [row.reason for row in keep.marked(rows)] == ["rule 1; its grid, kept", "rule 1"]


def test_a_grid_that_is_none_is_refused(tmp_path: Path) -> None:
    header = read_header(LLAMA)
    with pytest.raises(QuantmillError) as refused:
        kept(header, manifest(tmp_path, header, {}), "mainline", "r.yaml")
    assert str(refused.value) == (
        "r.yaml: keep: grid, and no tensor of the source lies on the grid of a type; "
        "leave `keep` out, or delete manifest.tsv where an earlier version made it"
    )


@pytest.mark.parametrize(("kind", "engine"), [("fp8", "mainline"), ("tq2_0", "ik")])
def test_a_grid_for_which_the_engine_has_no_type_is_refused(tmp_path: Path, kind: str, engine: str) -> None:
    header = read_header(LLAMA)
    with pytest.raises(QuantmillError) as refused:
        kept(header, manifest(tmp_path, header, {"output.weight": kind}), engine, "r.yaml")
    assert str(refused.value) == (
        f"r.yaml: keep: grid, and the source lies on the grid of {kind}, which no type of engine {engine} "
        "has; leave `keep` out; of all types q8_0 is the nearest"
    )


def test_the_example_makes_a_model_on_a_grid(tmp_path: Path) -> None:
    header = read_header(example.write(tmp_path / "qat.gguf"))
    assert {tensor.type for tensor in header.tensors} == {"bf16", "f32"}
