"""The importance matrix of the draft head, against numpy, and through the stage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from quantmill import spec
from quantmill.engine.mtp import Head
from quantmill.files import writing
from quantmill.formats.chunks import Chunk, write_chunks
from quantmill.formats.imatrix import read_gguf
from quantmill.measure import head
from quantmill.progress import Log
from quantmill.store import Store

MTP = Path(__file__).parents[2] / "data" / "tiny-mtp-Q8_0.gguf"
CONTEXT = 32
IDENTITY = {"engine": "e", "model": "m"}


@pytest.fixture(scope="module")
def chunks() -> NDArray[np.int32]:
    return np.random.default_rng(5).integers(3, 2048, (3, CONTEXT), dtype=np.int32)


def values(name: str) -> NDArray[np.float32]:
    tensor = next(tensor for tensor in gguf.GGUFReader(MTP).tensors if tensor.name == name)
    return gguf.dequantize(tensor.data, tensor.tensor_type)


def normed(rows: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-6) * weight


def test_the_head_sees_the_tokens_and_the_states_before_them(
    tmp_path: Path, chunks: NDArray[np.int32]
) -> None:
    shard = head.measure(
        "measure.imatrix", MTP, chunks, identity=IDENTITY, threads=1, store=Store(tmp_path / "s"), log=Log()
    )
    embedded, enorm, hnorm = (
        values(name) for name in ("token_embd.weight", "blk.2.nextn.enorm.weight", "blk.2.nextn.hnorm.weight")
    )
    expected = np.zeros(512)
    with Head(MTP, context=CONTEXT, batch=CONTEXT, threads=1) as model:
        for chunk in chunks:
            tokens = chunk.copy()
            if model.bos is not None:
                tokens[0] = model.bos
            model.clear()
            states = model.states(tokens, 0)
            before = np.concatenate([np.zeros((1, model.width), np.float32), states[:-1]])
            inputs = np.concatenate([normed(embedded[tokens], enorm), normed(before, hnorm)], axis=1)
            expected += (inputs.astype(np.float64) ** 2).sum(axis=0)
    sums = shard.sums["blk.2.nextn.eh_proj.weight"]
    np.testing.assert_allclose(sums.in_sum2[0], expected, rtol=1e-4, atol=1e-6)
    assert sums.counts.tolist() == [3 * CONTEXT]
    assert {name.removeprefix("blk.2.").removesuffix(".weight") for name in shard.leader} == {
        *("nextn.eh_proj", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }


def test_units_are_found_again(tmp_path: Path, chunks: NDArray[np.int32]) -> None:
    sums = []
    for made in (1, 0):
        store = Store(tmp_path / "s")
        shard = head.measure(
            "measure.imatrix", MTP, chunks, identity=IDENTITY, threads=1, store=store, log=Log()
        )
        assert store.made == made
        sums.append(shard.sums["blk.2.ffn_down.weight"].in_sum2)
    assert np.array_equal(*sums)


@pytest.mark.parametrize("mtp", [True, False])
def test_the_stage(tmp_path: Path, chunks: NDArray[np.int32], mtp: bool) -> None:
    with writing(tmp_path / "c.parquet") as file:
        write_chunks(file, [Chunk("noise", row, []) for row in chunks])
    config = {"corpus": "c", "chunks": 3, "context": CONTEXT} | ({"mtp": True} if mtp else {})
    made = spec.make("measure.imatrix", config, {"model": "m"}, engine="e")
    options = {"spec": made, "model": MTP, "corpus": tmp_path / "c.parquet", "store": tmp_path / "s"}
    options |= {"gguf": tmp_path / "i.gguf", "dat": tmp_path / "i.dat", "report": tmp_path / "i.json"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "quantmill.measure.imatrix", *words, "--threads", "1"]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads((tmp_path / "i.json").read_text("utf-8"))
    entries = read_gguf(tmp_path / "i.gguf").entries
    of_head = {name for name in entries if name.startswith("blk.2.")}
    assert len(of_head) == (8 if mtp else 0)
    assert report.get("through_head") == (sorted(of_head) if mtp else None)
    assert any(name.startswith("blk.2.") for name in report["missing"]) is not mtp
