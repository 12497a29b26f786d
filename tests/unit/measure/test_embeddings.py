"""Embeddings and scores compared: distances, orders, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from quantmill.errors import QuantmillError
from quantmill.measure.embeddings import compare, describe

WHERE = Path("m.gguf")


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)


def test_a_source_beside_itself_has_no_distance_and_the_same_order(vectors: np.ndarray) -> None:
    compared = compare(vectors, vectors, ranks=False, where=WHERE)
    assert (compared.distance == 0).all() and (compared.rank == 1).all() and (compared.same_first == 1).all()


def test_the_distance_is_one_less_the_cosine_whatever_the_length(vectors: np.ndarray) -> None:
    other = vectors + 0.3 * np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)
    cosines = (vectors * other).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(other, axis=1)
    compared = compare(2 * other, vectors, ranks=False, where=WHERE)
    assert compared.distance == pytest.approx(1 - cosines, abs=1e-6)


def test_neighbours_are_ranked_by_the_cosine_without_the_text_itself(vectors: np.ndarray) -> None:
    other = vectors + np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)
    compared = compare(other, vectors, ranks=False, where=WHERE)
    ours, theirs = ((v / np.linalg.norm(v, axis=1, keepdims=True)).astype(float) for v in (other, vectors))
    for i in range(len(vectors)):
        a, b = (np.delete(each @ each[i], i) for each in (ours, theirs))
        assert compared.rank[i] == pytest.approx(spearmanr(a, b).statistic)
        assert compared.same_first[i] == (a.argmax() == b.argmax())
    report = describe(compared)
    assert report["rank"]["mean"] == pytest.approx(np.mean(report["by_chunk"]["rank"]))
    assert report["distance"]["max"] == max(report["by_chunk"]["distance"])


def test_scores_are_compared_in_units_of_the_sources_variance() -> None:
    theirs = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    theirs[8:, 2:] = np.nan  # the last unit: a query each for two documents, too few to rank
    compared = compare(theirs + 0.5, theirs, ranks=True, where=WHERE)
    assert compared.distance == pytest.approx(0.125 / np.nanvar(theirs), rel=1e-5)
    assert (len(compared.distance), len(compared.rank), len(compared.same_first)) == (10, 8, 8)
    assert (compared.rank == 1).all()
    assert (compare(-theirs, theirs, ranks=True, where=WHERE).rank == -1).all()


def test_scores_that_are_all_the_same_are_refused() -> None:
    scores = np.ones((4, 4), np.float32)
    with pytest.raises(QuantmillError) as raised:
        compare(scores, scores, ranks=True, where=WHERE)
    assert str(raised.value) == (
        "m.gguf: the source gives every document of the corpus the same score; "
        "take another corpus: nothing can be ranked by this one"
    )


def test_another_models_embeddings_are_refused(vectors: np.ndarray) -> None:
    with pytest.raises(QuantmillError) as raised:
        compare(vectors[:, :8], vectors, ranks=False, where=WHERE)
    assert str(raised.value) == (
        "m.gguf: gives 8 values for a text, the source 16; compare it with the model that it was made from"
    )
