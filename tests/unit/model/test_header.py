"""Models without their tensors' data: headers alone, manifests, and what llama.cpp's dry run is given."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import headers as shapes
import models
from commands import command
from quantmill.errors import QuantmillError
from quantmill.files import read_json
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.plan import read_plan
from quantmill.model import header as headers
from quantmill.model.header import for_dry_run, read_manifest, read_source
from quantmill.recipe import presets

DATA = Path(__file__).parents[2] / "data"
MOE = DATA / "tiny-moe.gguf"


def beheaded(model: Path, folder: Path) -> Path:
    """The header of a model alone, a plain cut at the first tensor's data."""
    path = folder / f"header of {model.name}"
    path.write_bytes(model.read_bytes()[: read_header(model).tensors[0].offset])
    return path


def listing(model: Path, folder: Path, log: Path) -> list[str]:
    """The command that lists a model's tensors."""
    files = {"manifest": folder / "manifest.tsv", "facts": folder / "model.json"}
    return command("model.manifest", '{"config":{}}', model=model, **files, log=log)


def listed(model: Path, folder: Path) -> Path:
    """manifest.tsv and model.json of a model."""
    subprocess.run(listing(model, folder, folder / "log"), check=True)
    return folder / "manifest.tsv"


def plan(model: Path, folder: Path, recipe: str) -> subprocess.CompletedProcess[str]:
    (folder / "r.yaml").write_text(recipe, encoding="utf-8")
    spec = '{"config":{"recipe":"R","imatrix":null}}'
    files = {"recipe": folder / "r.yaml", "plan": folder / "p.tsv", "report": folder / "p.json"}
    words = command("recipe.plan", spec, model=model, **files, log=folder / "p.log")
    return subprocess.run(words, capture_output=True, text=True)


def test_a_header_alone_and_a_manifest_give_the_models_own_plan(tmp_path: Path) -> None:
    recipe = "base: Q4_K_M\nrules: [{role: ffn_down_exps, layers: [0], type: q6_K}]"
    plans, reports = [], []
    for model in (MOE, beheaded(MOE, tmp_path), listed(MOE, tmp_path)):
        done = plan(model, tmp_path, recipe)
        assert (done.returncode, done.stderr) == (0, "")
        plans.append(read_plan(tmp_path / "p.tsv"))
        reports.append(read_json(tmp_path / "p.json"))
    assert plans[0] == plans[1] == plans[2]
    assert reports[0] == reports[1]
    # a manifest has the bytes of the vocabulary in number alone
    assert abs(reports[2]["file_bytes"] - reports[0]["file_bytes"]) <= 128
    assert not list(tmp_path.glob("quantmill-*"))


def test_what_needs_the_data_refuses_in_one_line(tmp_path: Path) -> None:
    for model, words in (
        (beheaded(MOE, tmp_path), "a header alone: the "),
        (listed(MOE, tmp_path), "a manifest has no tensors' data; a plan can be made from it"),
    ):
        out = tmp_path / "out"
        done = subprocess.run(listing(model, out, tmp_path / "log"), capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert words in done.stderr
        assert not out.exists()


def test_an_interrupted_download_is_no_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    path.write_bytes(MOE.read_bytes()[:-10])
    with pytest.raises(QuantmillError, match="truncated: 10 of"):
        read_source(path)


def test_a_dry_run_in_parts_is_that_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (MOE, shapes.gemma4(tmp_path / "gemma.gguf"), shapes.qwen35(tmp_path / "qwen.gguf")):
        header, base = read_source(model), presets.resolve("Q4_K_M")
        whole = presets.mixture(header, base, imatrix=True)
        monkeypatch.setattr(headers, "PART", 19)
        assert presets.mixture(header, base, imatrix=True) == whole
        monkeypatch.undo()


def test_the_files_of_a_dry_run_are_few_however_many_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "PART", 2)
    monkeypatch.setattr(headers, "_PARTS", 10)
    header = read_source(shapes.qwen35(tmp_path / "qwen.gguf"))
    with for_dry_run(header) as path:
        assert len(read_header(path).shards) == len(list(path.parent.iterdir())) == 10


def test_a_split_source_is_planned_as_the_whole(tmp_path: Path) -> None:
    whole = models.write_llama(tmp_path / "m.gguf", width=256, layers=8)
    models.write_llama(tmp_path / "s.gguf", width=256, layers=8, split_max_tensors=5)
    split = read_source(sorted(tmp_path.glob("s-*.gguf"))[0])
    base = presets.resolve("Q3_K_M")
    assert presets.mixture(split, base, imatrix=False) == presets.mixture(
        read_header(whole), base, imatrix=False
    )


def test_sparse_files_take_no_room(tmp_path: Path) -> None:
    header = read_source(shapes.qwen35(tmp_path / "qwen.gguf"))
    with for_dry_run(header) as path:
        stat = os.stat(path)
        assert stat.st_size > 50 * 2**30
        assert stat.st_blocks * 512 < 32 * 2**20
    assert not path.exists()


def facts(**changes: Any) -> dict[str, Any]:
    given = {
        "block_count": 1,
        "embedding_length": 256,
        "context_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "rope.freq_base": 1e4,
        "note": "x",
        "flags": [True, False],
        "sections": [1, 2],
    }
    hyperparameters = {key: value for key, value in (given | changes).items() if value is not None}
    return {"architecture": "llama", "hyperparameters": hyperparameters}


def manifest(folder: Path, described: Any, row: str | None = None) -> Header:
    row = row or "blk.0.attn_q.weight\tattn_q\t0\t256\t64\t1\t1\tbf16"
    (folder / "manifest.tsv").write_text(
        f"name\trole\tlayer\tne0\tne1\tne2\tne3\ttype\n{row}\n", encoding="utf-8"
    )
    (folder / "model.json").write_text(json.dumps(described), encoding="utf-8")
    return read_manifest(folder / "manifest.tsv", folder / "model.json")


def test_a_manifest_made_by_hand(tmp_path: Path) -> None:
    header = manifest(tmp_path, facts())
    assert [(t.name, t.shape, t.type, t.bytes) for t in header.tensors] == [
        ("blk.0.attn_q.weight", (256, 64), "bf16", 32768)
    ]
    assert (header.architecture, header.layers, header.data) == ("llama", 1, "none")
    assert header.value("llama.flags") == [True, False]
    assert header.value("llama.rope.freq_base") == 10000.0


@pytest.mark.parametrize(
    ("described", "row", "message"),
    [
        ({}, None, "model.json: does not say the architecture"),
        ({"architecture": "llama"}, None, "has no hyperparameters; give block_count"),
        (facts(**{"attention.head_count_kv": None}), None, "lack attention.head_count_kv; llama.cpp's"),
        (facts(odd={"a": 1}), None, r"hyperparameters.odd: \{'a': 1\} is no value"),
        (facts(odd=[1, "a"]), None, "hyperparameters.odd: .* is no value"),
        (facts(), "x\tother\t-1\tmany\t1\t1\t1\tbf16", "manifest.tsv: line 2: no row of a manifest"),
        (facts(), "x\tother\t-1\t256\t1\t1\t1\tq9_9", "manifest.tsv: line 2: no row of a manifest"),
        (facts(), "blk.0.ffn_up_exps.weight\tx\t0\t256\t64\t4\t1\tbf16", "hyperparameters lack expert_count"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, described: Any, row: str | None, message: str) -> None:
    with pytest.raises(QuantmillError, match=message):
        manifest(tmp_path, described, row)
