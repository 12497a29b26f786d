"""Sources are loaded before anything is made of them; imatrices of encoders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ik
import models
from quantmill import spec
from quantmill.check import kind, trial
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.measure import imatrix
from quantmill.measure.collect import Shard
from quantmill.progress import Log
from quantmill.store import Store

DATA = Path(__file__).parents[1] / "data"
LLAMA = DATA / "tiny-llama.gguf"


def stage(name: str, config: dict, *arguments: object) -> subprocess.CompletedProcess[str]:
    made = spec.make(name, config, {}, engine="e")
    command = [sys.executable, "-m", f"quantmill.{name}", "--spec", made, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


@pytest.fixture
def unloadable(tmp_path: Path) -> Path:
    """A source of llama's architecture, of which llama.cpp misses a tensor."""
    return models.renamed(LLAMA, tmp_path / "old.gguf", "blk.1.ffn_down.weight", "blk.1.ffn_d0wn.weight")


def test_a_source_that_does_not_load_is_refused_before_anything_is_made(
    unloadable: Path, tmp_path: Path
) -> None:
    refused = stage("check.source", {"model": "m"}, "--model", unloadable, "--out", tmp_path / "check.json")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert (
        "old.gguf: llama.cpp cannot load it (" in refused.stderr and "not found); convert" in refused.stderr
    )
    assert not (tmp_path / "check.json").exists()


def test_what_a_fetched_source_cannot_have_is_refused_by_its_check(tmp_path: Path) -> None:
    """Where the config was read the file was not there yet."""
    requested = {
        "file": "c.yaml",
        "models": {"m": [["imatrix", "imatrix", 32], ["bench.kld", "bench.kld", 32]]},
    }
    refused = stage(
        "check.source",
        {"model": "m"},
        "--model",
        models.write_bert(tmp_path / "m.gguf"),
        "--evaluations",
        json.dumps(requested),
        "--out",
        tmp_path / "check.json",
    )
    assert refused.returncode == 1 and not (tmp_path / "check.json").exists()
    assert refused.stderr.startswith("error: c.yaml: bench.kld: m is an embedding model")


def test_values_that_come_to_nothing_are_an_error(tmp_path: Path) -> None:
    data = bytearray(LLAMA.read_bytes())
    tensor = next(t for t in read_header(LLAMA).tensors if t.name == "output_norm.weight")
    data[tensor.offset : tensor.offset + 4] = b"\0\0\xc0\x7f"
    (tmp_path / "nan.gguf").write_bytes(data)
    with trial.Process() as process, pytest.raises(QuantmillError, match="logits of it that are not finite"):
        process.load(tmp_path / "nan.gguf", "logits")


@pytest.mark.parametrize("engine", ["mainline", pytest.param("ik", marks=ik.NEEDED)])
def test_a_process_without_a_file_to_try_ends(engine: str) -> None:
    """Where the check fails before, and where whoever started it is gone."""
    with trial.Process(engine) as process:
        pass
    assert process._process.returncode == -9
    with trial.Process(engine) as process:
        assert process._process.stdin is not None
        process._process.stdin.close()
        assert process._process.wait(60) == 0


@pytest.mark.parametrize(
    ("write", "name"), [(models.write_bert, "encoder"), (models.write_t5, "encoder-decoder")]
)
def test_sources_of_other_kinds_load_too(write, name: str, tmp_path: Path) -> None:
    source = write(tmp_path / "m.gguf")
    checked = stage("check.source", {"model": "m"}, "--model", source, "--out", tmp_path / "check.json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads((tmp_path / "check.json").read_text("utf-8"))["kind"] == name


def collected(source: Path, folder: Path, context: int, vocabulary: int) -> Shard:
    tokens = np.random.default_rng(0).integers(5, vocabulary, (3, context), dtype=np.int32)
    return imatrix.measure(
        source,
        tokens,
        identity={},
        threads=1,
        store=Store(folder / "store"),
        log=Log(folder / "log"),
        sampled=kind.kind_of(read_header(source)).predicts,
    )


def test_the_imatrix_of_an_encoder_has_every_weight_and_no_perplexity(tmp_path: Path) -> None:
    source = models.write_bert(tmp_path / "m.gguf")
    shard = collected(source, tmp_path, 64, 21)
    weights = {t.name for t in read_header(source).tensors if t.type == "f16"}
    assert shard.leader.keys() == weights and not shard.nll.size
    assert {int(entry.counts[0]) for entry in shard.sums.values()} == {3 * 64}


@pytest.mark.parametrize("context", [16, 24, 520])
def test_no_token_of_a_chunk_is_lost_whatever_its_length(context: int, tmp_path: Path) -> None:
    """Inputs of under 16 rows are not collected: no batch may be as short."""
    shard = collected(LLAMA, tmp_path, context, 2048)
    assert {int(entry.counts[0]) for entry in shard.sums.values()} == {3 * context}
