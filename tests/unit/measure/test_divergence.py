"""The reduced form of the reference and the divergence from it, against the dense computation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import limits
from quantmill import files
from quantmill.errors import QuantmillError
from quantmill.measure import divergence, reference, score
from quantmill.measure.reference import Values, compare, keep
from quantmill.measure.score import cut, unit_key
from quantmill.progress import Log
from quantmill.stages import VERSIONS
from quantmill.store import Store

VOCABULARY = 2048
ROWS = 100


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def logits(rows: int = ROWS, vocabulary: int = VOCABULARY, scale: float = 3.0, seed: int = 0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((rows, vocabulary))).astype(np.float32)


def noisy(values: np.ndarray, noise: float = 0.2) -> np.ndarray:
    return values + logits(*values.shape, scale=noise, seed=1)


def tokens(rows: int = ROWS, vocabulary: int = VOCABULARY) -> np.ndarray:
    return np.random.default_rng(2).integers(0, vocabulary, rows).astype(np.int32)


def log_softmax(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def dense(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p||q) over the whole vocabulary."""
    p, q = log_softmax(p), log_softmax(q)
    return (np.exp(p) * (p - q)).sum(axis=1)


# Peaked and flat, smaller than a block, ids of 32 bits, little that is stored, nothing but the top.
SHAPES = [
    (ROWS, VOCABULARY, 3.0),
    (3, VOCABULARY, 8.0),
    (ROWS, VOCABULARY, 0.0),
    (1, 65537, 2.0),
    (ROWS, 64, 2.0),
    (40, VOCABULARY, 60.0),
]


@pytest.mark.parametrize(("rows", "vocabulary", "scale"), SHAPES)
def test_a_model_s_divergence_from_itself_is_exactly_0(
    pool: ThreadPoolExecutor, rows: int, vocabulary: int, scale: float
) -> None:
    values, came = logits(rows, vocabulary, scale), tokens(rows, vocabulary)
    stored = reference.from_bytes(reference.to_bytes([keep(values, came, pool)]))[0]
    compared = compare(values.copy(), came, stored, pool)
    assert np.array_equal(compared.kld, np.zeros(rows))
    assert np.array_equal(
        compared.whole[~np.isnan(compared.whole)], np.zeros((~np.isnan(compared.whole)).sum())
    )
    assert compared.same_top.all()
    assert np.array_equal(compared.nll, compared.nll_reference)


@pytest.mark.parametrize(("rows", "vocabulary", "scale"), SHAPES)
def test_the_divergence_is_near_the_dense_one(
    pool: ThreadPoolExecutor, rows: int, vocabulary: int, scale: float
) -> None:
    values, came = logits(rows, vocabulary, scale), tokens(rows, vocabulary)
    other = noisy(values)
    compared = compare(other, came, keep(values, came, pool), pool)
    expected = dense(values, other)
    assert compared.kld.mean() == pytest.approx(expected.mean(), rel=0.15, abs=1e-6)
    stored_whole = ~np.isnan(compared.whole)
    assert stored_whole.sum() == len(reference.whole_rows(rows)) > 0
    assert compared.whole[stored_whole] == pytest.approx(expected[stored_whole], rel=1e-4, abs=1e-6)


def test_the_estimate_is_without_bias_and_the_bound_alone_is_not(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, came = logits(1000, scale=1.0), tokens(1000)
    other = noisy(values)
    expected = dense(values, other)
    compared = compare(other, came, keep(values, came, pool), pool)
    assert compared.mass.mean() < 0.5  # most of it is sampled
    error = compared.kld - expected
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(1000)
    assert abs(error.mean()) < 0.02 * expected.mean()
    gap = compared.whole[~np.isnan(compared.whole)] - compared.kld[~np.isnan(compared.whole)]
    assert abs(gap.mean()) < 0.1 * expected.mean()
    # with the samples' part gone, what is left is a lower bound for each prediction
    monkeypatch.setattr(np, "expm1", lambda ratio: ratio)
    bound = compare(other, came, keep(values, came, pool), pool).kld
    assert (bound < expected).all()
    assert expected.mean() - bound.mean() > 0.3 * expected.mean()


def test_likely_tokens_are_kept_exactly_and_no_more_than_the_cap(pool: ThreadPoolExecutor) -> None:
    for scale in (2.0, 8.0):
        values = logits(scale=scale)
        stored = keep(values, tokens(), pool)
        assert stored.counts.max() <= VOCABULARY // 16
        expected = log_softmax(values)
        starts = np.cumsum([0, *stored.counts])
        for row in range(ROWS):
            part = slice(starts[row], starts[row + 1])
            best = np.argsort(-expected[row])[: VOCABULARY // 16]
            best = best[expected[row, best] > np.log(1e-5)]
            assert set(stored.ids[part]) == set(best)
            assert stored.logs[part] == pytest.approx(expected[row, stored.ids[part]], abs=1e-5)
            rest = np.delete(np.exp(expected[row]), stored.ids[part]).sum()
            assert np.exp(stored.rest[row]) == pytest.approx(rest, rel=1e-4)
            assert not set(stored.sample_ids[row]) & set(stored.ids[part])
        assert np.array_equal(stored.top, values.argmax(axis=1))
        assert stored.nll == pytest.approx(-expected[np.arange(ROWS), tokens()], abs=1e-5)


def test_the_form_is_bounded(pool: ThreadPoolExecutor) -> None:
    """Under half of llama-perplexity's 2 V + 8 bytes a prediction, whatever the distribution."""
    for vocabulary in (512, 2048, 49152, 128256):
        for scale in (0.1, 2.0, 8.0):
            values = logits(64, vocabulary, scale)
            size = len(reference.to_bytes([keep(values, tokens(64, vocabulary), pool)]))
            assert size < 64 * (vocabulary + 4) + 3000, (vocabulary, scale)  # npz names its arrays


def test_tokens_that_are_ruled_out_are_no_trouble(pool: ThreadPoolExecutor) -> None:
    values = logits()
    values[:, 1000:] = -np.inf
    stored = keep(values, np.zeros(ROWS, np.int32), pool)
    assert np.array_equal(compare(values, np.zeros(ROWS, np.int32), stored, pool).kld, np.zeros(ROWS))
    compared = compare(noisy(values), np.zeros(ROWS, np.int32), stored, pool)
    assert compared.kld.mean() == pytest.approx(
        dense(values[:, :1000], noisy(values)[:, :1000]).mean(), rel=0.05
    )


def test_the_statistics_are_llama_perplexity_s(pool: ThreadPoolExecutor) -> None:
    """Each by the formula of tools/perplexity/perplexity.cpp, from the dense distributions."""
    values, came = logits(120, scale=4.0), tokens(120)
    other = noisy(values, 0.5)
    described = divergence.describe(compare(other, came, keep(values, came, pool), pool), 4)
    p, q = log_softmax(values), log_softmax(other)
    rows, n = np.arange(120), 120
    nll, base = -q[rows, came], -p[rows, came]

    def error(sample: np.ndarray) -> float:
        return np.sqrt(((sample**2).mean() - sample.mean() ** 2) / (n - 1))

    covariance = ((nll * base).mean() - nll.mean() * base.mean()) / (n - 1)
    assert described["perplexity"]["value"] == pytest.approx(np.exp(nll.mean()), rel=1e-5)
    assert described["perplexity"]["error"] == pytest.approx(np.exp(nll.mean()) * error(nll), rel=1e-4)
    assert described["perplexity_reference"]["value"] == pytest.approx(np.exp(base.mean()), rel=1e-5)
    assert described["correlation"] == pytest.approx(covariance / (error(nll) * error(base)), rel=1e-4)
    ratio_error = np.sqrt(error(nll) ** 2 + error(base) ** 2 - 2 * covariance)
    assert described["log_ratio"]["mean"] == pytest.approx(nll.mean() - base.mean(), abs=1e-5)
    assert described["log_ratio"]["error"] == pytest.approx(ratio_error, rel=1e-4)
    ratio = np.exp(nll.mean() - base.mean())
    assert described["ratio"]["value"] == pytest.approx(ratio, rel=1e-4)
    assert described["ratio"]["error"] == pytest.approx(ratio * ratio_error, rel=1e-4)
    one, two = np.exp(nll.mean()), np.exp(base.mean())
    assert described["difference"]["value"] == pytest.approx(one - two, rel=1e-3)
    assert described["difference"]["error"] == pytest.approx(
        np.sqrt((one * error(nll)) ** 2 + (two * error(base)) ** 2 - 2 * one * two * covariance), rel=1e-3
    )
    change = np.exp(-nll) - np.exp(-base)
    rms = np.sqrt((change**2).mean())
    assert described["p_diff"]["mean"] == pytest.approx(change.mean(), abs=1e-7)
    assert described["p_diff"]["error"] == pytest.approx(error(change), rel=1e-4)
    assert described["p_diff"]["rms"] == pytest.approx(rms, rel=1e-4)
    assert described["p_diff"]["rms_error"] == pytest.approx(0.5 / rms * error(change**2), rel=1e-4)
    same = (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert 0 < same < 1
    assert described["same_top"]["mean"] == same
    assert described["same_top"]["error"] == pytest.approx(np.sqrt(same * (1 - same) / (n - 1)))
    kld = np.sort(dense(values, other))
    place = 0.95 * (n - 1)
    low = int(place)
    expected = (1 - (place - low)) * kld[low] + (place - low) * kld[low + 1]
    assert described["kld"]["95%"] == pytest.approx(expected, rel=0.05)
    assert described["kld"]["max"] == pytest.approx(kld[-1], rel=0.05)
    assert described["by_chunk"]["nll"] == pytest.approx(list(nll.reshape(4, 30).mean(axis=1)), rel=1e-5)
    assert np.mean(described["by_chunk"]["kld"]) == pytest.approx(described["kld"]["mean"])


def test_a_model_beside_itself_has_no_errors_that_are_not_numbers(pool: ThreadPoolExecutor) -> None:
    values, came = logits(8), tokens(8)
    described = divergence.describe(compare(values, came, keep(values, came, pool), pool), 2)
    assert described["kld"]["mean"] == described["kld"]["max"] == described["p_diff"]["rms_error"] == 0
    assert described["log_ratio"] == {"mean": 0, "error": 0}
    assert described["ratio"] == {"value": 1, "error": 0}
    assert described["correlation"] == pytest.approx(1)


def test_values_go_through_the_store_whole(pool: ThreadPoolExecutor) -> None:
    values = compare(noisy(logits()), tokens(), keep(logits(), tokens(), pool), pool)
    again, seconds = Values.from_bytes(values.to_bytes(1.5))
    assert seconds == 1.5
    for name, array in vars(values).items():
        assert np.array_equal(getattr(again, name), array, equal_nan=array.dtype.kind == "f"), name


def test_the_form_changes_only_with_its_version(pool: ThreadPoolExecutor) -> None:
    """What is in the store under one version must be read alike by all."""
    stored = keep(logits(), tokens(), pool)
    with np.load(io.BytesIO(reference.to_bytes([stored, stored]))) as arrays:
        form = {name: (arrays[name].dtype.str, arrays[name].shape[1:]) for name in arrays if name[0] == "1"}
    assert (VERSIONS[reference.STAGE], reference.FORM, form) == (
        1,
        {"threshold": 1e-5, "most_of_vocabulary": 1 / 16, "samples": 64},
        {
            "1/counts": ("<i8", ()),
            "1/ids": ("<u2", ()),
            "1/logs": ("<f4", ()),
            "1/rest": ("<f4", ()),
            "1/sample_ids": ("<u2", (64,)),
            "1/sample_logs": ("<f4", (64,)),
            "1/top": ("<u2", ()),
            "1/nll": ("<f4", ()),
            "1/whole": ("<f4", (VOCABULARY,)),
        },
    ), "the reduced form changed: raise its version in stages.py, then note both here"


def test_a_unit_of_values_keeps_its_names(pool: ThreadPoolExecutor) -> None:
    """Stores hold units that were written by earlier versions."""
    values = compare(noisy(logits()), tokens(), keep(logits(), tokens(), pool), pool)
    with np.load(io.BytesIO(values.to_bytes(1.5))) as arrays:
        assert (VERSIONS[divergence.STAGE], arrays.files) == (
            1,
            ["seconds", "kld", "nll", "nll_reference", "same_top", "kept", "mass", "whole"],
        ), "the unit changed: raise the version in stages.py, then note both here"
        assert np.array_equal(arrays["kept"], values.tokens_stored)


def test_predictions_that_the_store_has_are_not_all_held(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MAPPED_ABOVE", 0)  # as large ones are, each with an open file
    source = divergence.Model(tmp_path / "none.gguf", {"engine": "e", "model": "m"})
    parts, store = cut(np.arange(8 * 200).reshape(-1, 1)), Store(tmp_path)
    for part in parts:
        store.put(unit_key(reference.STAGE, part, source.identity), b"predictions")
    with limits.few_files():
        stored = divergence._references(source, parts, None, pool, store, Log())
    assert stored == {}


def test_predictions_that_are_not_finite_have_no_perplexity() -> None:
    with pytest.raises(QuantmillError, match="predictions are NaN or infinite"):
        score.perplexity(np.array([1.0, np.nan, 2.0], np.float32))
