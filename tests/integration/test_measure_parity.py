"""The same numbers as llama.cpp's own tools on the same tokens.

The expected files were made by the tools of the pinned sdist, in tests/data:

    llama-imatrix -m tiny-X.gguf -f text.txt -c 128 -b 128 --chunks 12 --output-format F -o llama-imatrix-X.F
    llama-perplexity -m tiny-X.gguf -f text.txt -c 128 -b 128 --chunks 20

Another processor's kernels round otherwise, hence the tolerances;
`make bench` compares both on one machine, to the last printed digit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantmill.engine.vocabulary import Vocabulary
from quantmill.formats import imatrix as formats
from quantmill.measure import imatrix, perplexity
from quantmill.progress import Log
from quantmill.store import Store

DATA = Path(__file__).parents[1] / "data"
CONTEXT = 128
PERPLEXITY = {"llama": (1384.8520, 149.09613), "moe": (5157.7426, 260.54721)}


def _chunks(model: str, count: int) -> np.ndarray:
    with Vocabulary(DATA / f"tiny-{model}.gguf") as vocabulary:
        tokens = vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))
    return tokens[: count * CONTEXT].reshape(count, CONTEXT)


def _imatrix(model: str, chunks: np.ndarray, store: Store) -> formats.Imatrix:
    shard = imatrix.measure(
        DATA / f"tiny-{model}.gguf", chunks, identity={"model": model}, threads=1, store=store, log=Log()
    )
    names = set(shard.leader)
    return formats.Imatrix("text.txt", len(chunks), CONTEXT, imatrix.entries(shard, names))


@pytest.mark.parametrize("model", ["llama", "moe"])
def test_imatrix_is_llama_imatrix_s(tmp_path, model):
    expected = formats.read_gguf(DATA / f"llama-imatrix-{model}.gguf")
    result = _imatrix(model, _chunks(model, 12), Store(tmp_path))
    assert result.entries.keys() == expected.entries.keys()
    for name, entry in expected.entries.items():
        assert np.array_equal(result.entries[name].counts, entry.counts), name
        ours, theirs = result.entries[name].in_sum2.ravel(), entry.in_sum2.ravel()
        # On the processor that made the file they are within 1e-5. Others round f16 products differently.
        assert np.allclose(ours, theirs, rtol=2e-3, atol=0), name


@pytest.mark.parametrize("model", ["llama", "moe"])
def test_both_formats_are_llama_imatrix_s_own(tmp_path, model):
    """Written from the same values, the files are the same to the byte."""
    expected = formats.read_gguf(DATA / f"llama-imatrix-{model}.gguf")
    formats.write_gguf(tmp_path / "out.gguf", expected)
    assert (tmp_path / "out.gguf").read_bytes() == (DATA / f"llama-imatrix-{model}.gguf").read_bytes()
    formats.write_dat(tmp_path / "out.dat", expected)
    assert (tmp_path / "out.dat").read_bytes() == (DATA / f"llama-imatrix-{model}.dat").read_bytes()


def test_merged_shards_are_one_run(tmp_path, monkeypatch):
    chunks = _chunks("moe", 8)
    whole = _imatrix("moe", chunks, Store(tmp_path / "whole"))
    monkeypatch.setattr("quantmill.measure.score.CHUNKS_A_UNIT", 3)
    shards = Store(tmp_path / "shards")
    merged = _imatrix("moe", chunks, shards)
    assert shards.made == 3
    for name, entry in whole.entries.items():
        assert np.array_equal(merged.entries[name].counts, entry.counts)
        assert np.allclose(merged.entries[name].in_sum2, entry.in_sum2, rtol=1e-6, atol=0)


def test_shards_are_reused_and_the_same_again(tmp_path):
    """A second run computes nothing; more chunks compute the new ones alone; a lost unit is made again."""
    chunks = _chunks("llama", 24)
    first = Store(tmp_path)
    short = _imatrix("llama", chunks[:16], first)
    assert (first.made, first.reused) == (2, 0)
    second = Store(tmp_path)
    again = _imatrix("llama", chunks[:16], second)
    assert (second.made, second.reused) == (0, 2)
    longer = Store(tmp_path)
    _imatrix("llama", chunks, longer)
    assert (longer.made, longer.reused) == (1, 2)
    lost = next((tmp_path / "units").glob("*/*"))
    lost.unlink()
    third = Store(tmp_path)
    _imatrix("llama", chunks, third)
    assert (third.made, third.reused) == (1, 2)
    for name, entry in short.entries.items():
        assert np.array_equal(entry.in_sum2, again.entries[name].in_sum2)


@pytest.mark.parametrize("model", ["llama", "moe"])
def test_perplexity_is_llama_perplexity_s(tmp_path, model):
    nll, _ = perplexity.measure(
        DATA / f"tiny-{model}.gguf",
        _chunks(model, 20),
        identity={},
        threads=1,
        store=Store(tmp_path),
        log=Log(),
    )
    assert nll.shape == (20, CONTEXT // 2 - 1)
    result = perplexity.report({"corpus": "text", "chunks": len(nll), "context": CONTEXT}, nll, 0, "sha256")
    value, error = PERPLEXITY[model]
    assert result["perplexity"] == pytest.approx(value, rel=1e-4)
    assert result["error"] == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(("context", "batch"), [(128, 128), (128, 48), (96, 512), (128, 64)])
def test_batches_do_not_change_the_scored_tokens(context, batch):
    """However a chunk is cut into batches, the second half's next tokens are scored, each once."""
    from quantmill.measure.score import parts

    scored = []
    for tokens, first, targets in parts(context, batch):
        rows = list(range(tokens.start + first, tokens.stop))
        expected = [row + 1 for row in rows if row + 1 < context]
        assert list(range(context)[targets]) == expected
        scored += expected
    assert scored == list(range(context // 2 + 1, context))
