"""The manifest: every tensor's digest, the file's, and the model's facts."""

import hashlib
import subprocess
from pathlib import Path

import pytest

import grids
import models
from commands import command
from quantmill.files import read_json, read_table
from quantmill.formats.ggufio import read_header
from quantmill.formats.manifest import COLUMNS, read_grids
from quantmill.model import manifest
from quantmill.model.digests import Memo
from quantmill.progress import Log

MOE = Path(__file__).parents[2] / "data" / "tiny-moe.gguf"


def run(model: Path, folder: Path, threads: int) -> subprocess.CompletedProcess[str]:
    files = {"manifest": folder / "manifest.tsv", "facts": folder / "model.json", "log": folder / "log"}
    words = command("model.manifest", '{"config":{}}', model=model, **files, threads=threads)
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_tensor_and_the_file_are_hashed(tmp_path: Path, threads: int) -> None:
    assert run(MOE, tmp_path, threads).returncode == 0
    rows, content = read_table(tmp_path / "manifest.tsv"), MOE.read_bytes()
    assert [row["name"] for row in rows] == [t.name for t in read_header(MOE).tensors]
    for row, tensor in zip(rows, read_header(MOE).tensors, strict=True):
        data = content[tensor.offset : tensor.offset + tensor.bytes]
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert int(row["bytes"]) == len(data)
    facts = read_json(tmp_path / "model.json")
    assert facts["sha256"] == hashlib.sha256(content).hexdigest()
    assert facts["bytes"] == len(content)


def test_grids_are_said_where_there_are_some(tmp_path: Path) -> None:
    assert run(grids.write(tmp_path / "qat.gguf"), tmp_path, 2).returncode == 0
    said = "16 of its matrices lie on the grid of q4_0: `keep: grid` in a recipe keeps them"
    assert said in (tmp_path / "log").read_text("utf-8")
    assert set(read_grids(tmp_path / "manifest.tsv").values()) == {"q4_0"}
    assert read_json(tmp_path / "model.json")["grids"] == {"q4_0": 16}
    rows = read_table(tmp_path / "manifest.tsv")
    assert {row["grid"] for row in rows if row["ne1"] == "1"} == {""}


def test_of_an_ordinary_source_the_manifest_says_nothing_of_grids(tmp_path: Path) -> None:
    assert run(MOE, tmp_path, 2).returncode == 0
    head = (tmp_path / "manifest.tsv").read_text("utf-8").splitlines()[0]
    assert head.split("\t") == COLUMNS and read_grids(tmp_path / "manifest.tsv") == {}
    assert "grids" not in read_json(tmp_path / "model.json")


def test_a_row_and_the_facts() -> None:
    header = read_header(MOE)
    rows = {row.name: row for row in manifest.rows(header, {t.name: "ab" for t in header.tensors})}
    row = rows["blk.0.ffn_up_exps.weight"]
    assert row == ("blk.0.ffn_up_exps.weight", "ffn_up_exps", 0, (256, 256, 4), "f16", 524288, "ab")
    facts = manifest.facts(header, ["a"], 3)
    assert {key: facts[key] for key in ("architecture", "layers", "experts", "experts_used", "sha256")} == {
        "architecture": "qwen35moe",
        "layers": 2,
        "experts": 4,
        "experts_used": 2,
        "sha256": "a",
    }
    assert (facts["name"], facts["tokenizer"]) == ("Tiny Moe", "gpt2")
    assert (facts["quantized"], facts["tensors"]) == (False, 38)
    assert "<|im_start|>" in facts["chat_template"]
    assert sum(facts["types"].values()) == 38


def test_a_quantized_source_says_so(tmp_path: Path) -> None:
    header = read_header(models.write_llama(tmp_path / "m.gguf", width=64, quantized="q8_0"))
    facts = manifest.facts(header, ["a"], 1)
    assert (facts["quantized"], facts["quantized_types"]) == (True, ["q8_0"])


def test_a_split_source(tmp_path: Path) -> None:
    models.write_llama(tmp_path / "m.gguf", width=64, split_max_tensors=5)
    shards = sorted(tmp_path.glob("m-*.gguf"))
    header, memo = read_header(shards[0]), Memo([tmp_path / "notes"])
    digests, files = manifest.digests(header, memo, 2, Log(tmp_path / "log"))
    assert files == [hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards]
    assert len(digests) == len(read_header(shards[0]).tensors)
    facts = manifest.facts(read_header(shards[0]), files, 1)
    assert facts["sha256"] == hashlib.sha256("\n".join(files).encode()).hexdigest()


def test_a_truncated_source_is_refused_and_nothing_written(tmp_path: Path) -> None:
    source = tmp_path / "cut.gguf"
    source.write_bytes(MOE.read_bytes()[:-100_000])
    done = run(source, tmp_path, 2)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "truncated: 100,000 of" in done.stderr
    assert not (tmp_path / "manifest.tsv").exists()
    assert not (tmp_path / "model.json").exists()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("noted", [False, True])
def test_a_weight_that_is_no_number_is_refused_by_its_tensor(
    tmp_path: Path, threads: int, noted: bool
) -> None:
    source = tmp_path / "nan.gguf"
    data = bytearray(MOE.read_bytes())
    tensor = next(t for t in read_header(MOE).tensors if t.name == "blk.1.attn_qkv.weight" or t.type == "f16")
    at = tensor.offset + 2 * 7
    data[at : at + 2] = b"\x00\x7e"
    source.write_bytes(data)
    if noted:  # when the workflow is read it is no error yet
        note(source)
    done = run(source, tmp_path, threads)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert (
        f"1 of the {tensor.elements:,} values of {tensor.name} are NaN or infinite, the first at 7;"
        in done.stderr
    )
    assert not (tmp_path / "manifest.tsv").exists()


def test_what_was_noted_when_the_workflow_was_read_is_not_read_again(tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    source.write_bytes(MOE.read_bytes())
    note(source)
    for folder in ("noted", "read"):
        (tmp_path / folder).mkdir()
    assert run(source, tmp_path / "noted", 2).returncode == 0
    assert "hashing" not in (tmp_path / "noted" / "log").read_text("utf-8")
    source.touch()
    assert run(source, tmp_path / "read", 2).returncode == 0
    assert "hashing m.gguf: 0.0 of 6.8 MiB" in (tmp_path / "read" / "log").read_text("utf-8")
    for name in ("manifest.tsv", "model.json"):
        assert (tmp_path / "noted" / name).read_bytes() == (tmp_path / "read" / name).read_bytes()


def note(source: Path) -> None:
    """Read a source as the workflow does."""
    Memo.of_stage().sha256(source)
