"""Encoders and rerankers from a config to a card: their embeddings, scores, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import models
from checkout import Checkout
from quantmill import spec
from quantmill.engine.embedder import Embedder
from quantmill.errors import QuantmillError
from quantmill.files import write_json, writing
from quantmill.formats.chunks import Chunk, write_chunks
from quantmill.formats.ggufio import read_header
from quantmill.measure.embeddings import Model, compare, load, measure
from quantmill.progress import Log
from quantmill.sensitivity.probe import Embedded
from quantmill.store import Store

CHUNKS, CONTEXT = 10, 32
VOCABULARY = 21
CLS, SEP = 2, 3


def chunks(count: int = CHUNKS) -> np.ndarray:
    return np.random.default_rng(0).integers(5, VOCABULARY, (count, CONTEXT), dtype=np.int32)


def vectors_of(source: Path, folder: Path, count: int = CHUNKS) -> tuple[np.ndarray, Store]:
    store = Store(folder / "store")
    model = Model(source, {"model": source.name}, read_header(source))
    made, _ = measure(model, chunks(count), threads=1, store=store, log=Log(folder / "log"))
    return made, store


def native(source: Path, tokens: list[int], pooling: int) -> np.ndarray:
    """llama-cpp-python's own embedding of these tokens, without flash attention: its last digits differ."""
    from llama_cpp import Llama

    llama = Llama(str(source), embedding=True, pooling_type=pooling, n_ctx=64, verbose=False)
    llama._batch.set_batch(batch=tokens, n_past=0, logits_all=True)
    llama._ctx.decode(llama._batch)
    import llama_cpp

    width = 1 if pooling == 4 else 64
    return np.array(llama_cpp.llama_get_embeddings_seq(llama.ctx, 0)[:width], np.float32)


@pytest.mark.parametrize("pooling", [None, "MEAN", "CLS", "LAST"])
def test_a_chunk_is_embedded_as_a_text_and_pooled_as_the_metadata_say(
    pooling: str | None, tmp_path: Path
) -> None:
    kind = None if pooling is None else gguf.PoolingType[pooling]
    source = models.write_bert(tmp_path / "m.gguf", pooling=kind)
    made, store = vectors_of(source, tmp_path)
    assert made.shape == (CHUNKS, 64) and store.made == 2
    text = [CLS, *chunks()[3].tolist()[1:-1], SEP]
    assert made[3] == pytest.approx(native(source, text, int(kind or 1)), abs=2e-3)


def test_a_second_run_finds_the_units(tmp_path: Path) -> None:
    source = models.write_bert(tmp_path / "m.gguf")
    first, _ = vectors_of(source, tmp_path)
    source.rename(tmp_path / "moved.gguf")
    models.write_bert(source)
    again, store = vectors_of(source, tmp_path)
    assert (first == again).all() and (store.made, store.reused) == (0, 2)


def test_a_reranker_scores_queries_and_documents_of_a_unit(tmp_path: Path) -> None:
    source = models.write_bert(tmp_path / "m.gguf", pooling=gguf.PoolingType.RANK)
    made, _ = vectors_of(source, tmp_path)
    assert made.shape == (CHUNKS, 8)
    assert np.isnan(made[8:, 2:]).all() and not np.isnan(made[:8]).any() and not np.isnan(made[8:, :2]).any()
    left = CONTEXT - 2  # of [CLS] query [SEP] document, as llama-server has it
    query, document = chunks()[1].tolist()[: left // 4], chunks()[4].tolist()[CONTEXT - (left - left // 4) :]
    expected = native(source, [CLS, *query, SEP, *document], 4)
    assert made[1, 4] == pytest.approx(expected[0], abs=2e-3)


def test_a_probe_is_the_distance_of_a_file_with_that_tensor_alone(tmp_path: Path) -> None:
    source = models.write_bert(tmp_path / "m.gguf", pooling=gguf.PoolingType.CLS)
    name = "blk.1.ffn_up.weight"
    data, tensor = (
        bytearray(source.read_bytes()),
        next(t for t in read_header(source).tensors if t.name == name),
    )
    own = np.frombuffer(bytes(data[tensor.offset : tensor.offset + tensor.bytes]), np.uint8)
    coarse = (own.view(np.uint16) & 0xFF00).view(np.uint8)
    data[tensor.offset : tensor.offset + tensor.bytes] = coarse.tobytes()
    (tmp_path / "q.gguf").write_bytes(data)
    theirs, _ = vectors_of(source, tmp_path)
    ours, _ = vectors_of(tmp_path / "q.gguf", tmp_path)
    expected = compare(ours, theirs, ranks=False, where=source).distance
    with load(source, read_header(source), CONTEXT, 1, writable=True) as model:
        prober = Embedded(model, model.weights({name}), chunks())
        assert (prober.measure().kld == 0).all()
        assert prober.probe(name, coarse, own).kld == pytest.approx(expected, rel=1e-3)
        assert (prober.measure().kld == 0).all()


def test_a_context_without_room_for_a_text_is_refused(tmp_path: Path) -> None:
    source = models.write_bert(tmp_path / "m.gguf", pooling=gguf.PoolingType.RANK)
    template = "[CLS] a b c d e f g h {query} a b c d {document} [SEP]"
    with pytest.raises(QuantmillError, match=r"24 tokens hold no text beside the \d+ that the model wants"):
        Embedder(source, context=24, threads=1, pooling="rank", rerank=template)


def test_values_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    source = models.write_bert(tmp_path / "m.gguf")
    tensor = next(t for t in read_header(source).tensors if t.name == "blk.1.layer_output_norm.bias")
    data = bytearray(source.read_bytes())
    data[tensor.offset : tensor.offset + 4] = b"\0\0\xc0\x7f"
    source.write_bytes(data)
    with pytest.raises(QuantmillError, match="gives embeddings that are not finite"):
        vectors_of(source, tmp_path)


def test_the_stage_compares_with_the_source_and_keeps_both(tmp_path: Path) -> None:
    source = models.write_bert(tmp_path / "m.gguf")
    coarse = models.write_coarse(source, tmp_path / "q.gguf")
    with writing(tmp_path / "c.parquet") as file:
        write_chunks(file, [Chunk("letters", row, []) for row in chunks()])
    for name in ("m", "q"):
        write_json(tmp_path / f"{name}.json", {"sha256": name})

    def run(name: str) -> dict[str, Any]:
        config = {"corpus": "c", "chunks": CHUNKS, "context": CONTEXT}
        words = ["--spec", spec.make("measure.embeddings", config, {}, engine="e"), "--out", tmp_path / "o"]
        words += ["--model", tmp_path / f"{name}.gguf", "--facts", tmp_path / f"{name}.json"]
        words += ["--reference", source, "--reference-facts", tmp_path / "m.json"]
        words += ["--corpus", tmp_path / "c.parquet", "--store", tmp_path / "store"]
        command = [sys.executable, "-m", "quantmill.measure.embeddings", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "2 units made" in done.stderr  # the source's are made once for all files
        return json.loads((tmp_path / "o").read_text("utf-8"))

    itself, other = run("m"), run("q")
    assert coarse.exists() and itself["distance"]["max"] == 0 and itself["rank"]["mean"] == 1
    assert 0 < other["distance"]["mean"] < 0.01 and 0.9 < other["rank"]["mean"] < 1
    assert (other["pooling"], other["values"], other["texts"]) == ("mean", 64, CHUNKS)
    assert len(other["by_chunk"]["rank"]) == CHUNKS


@pytest.mark.parametrize("pooling", ["MEAN", "RANK"])
def test_from_the_config_to_the_card(pooling: str, tmp_path: Path) -> None:
    checkout = Checkout.build(tmp_path / "checkout")
    models.write_bert(checkout.folder / "bert.gguf", pooling=gguf.PoolingType[pooling])
    for seed, name in enumerate(("letters", "tuning")):
        letters = " ".join(np.random.default_rng(seed).choice(list("abcdefgh"), 4000))
        (checkout.folder / f"{name}.txt").write_text(letters, encoding="utf-8")
    checkout.configure(
        lambda config: config.update(
            models={"bert": {"source": {"path": "bert.gguf"}}},
            corpora={
                name: {"sources": [{"name": "letters", "path": f"{name}.txt"}]}
                for name in ("letters", "tuning")
            },
            imatrix=None,
            sensitivity={"corpus": "tuning", "chunks": 4, "context": 24, "types": ["q4_0", "q8_0"]},
            recipes=["Q8_0", "Q4_0", {"name": "sized", "template": "budget", "bpw": 9}],
            bench={"embeddings": {"corpus": "letters", "chunks": 9, "context": 24}},
        )
    )
    checkout.run()
    card = (checkout.folder / "results" / "bert" / "card" / "README.md").read_text("utf-8")
    assert "| Distance | Rank correlation | Same first |" in card
    assert f"## {'Scores' if pooling == 'RANK' else 'Embeddings'}\n" in card
    assert "**Take `Q8_0`" in card or "**Take `Q4_0`" in card
    assert "| `Q4_0` | `Q8_0` |" in card.split("More distance")[1]
    assert "| Predicted distance | Measured distance |" in card and "KL" not in card
    report = json.loads((checkout.folder / "results" / "bert" / "sensitivity.json").read_text("utf-8"))
    assert report["floor"] == {"before": 0, "after": 0} and report["probes"] == report["choices"]
    assert checkout.due() == set()
