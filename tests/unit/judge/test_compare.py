"""Paired differences, verdicts and the frontier, by hand-computed values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from quantmill.errors import QuantmillError
from quantmill.judge import compare


def measured(nll: list[float], **fields: Any) -> dict[str, Any]:
    return {"corpus": "held-out", "context": 512, "chunks": len(nll), "nll": nll} | fields


def test_the_difference_is_the_mean_of_the_chunks_differences_and_its_error_sd_over_root_n() -> None:
    # differences 0.01, 0.03, 0.02, 0.02, 0.02: mean 0.02, sd sqrt(0.0002 / 4), error sd / sqrt(5)
    difference = compare.paired(measured([1.01, 2.03, 3.02, 4.02, 5.02]), measured([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert difference.ln_ratio == pytest.approx(0.02)
    assert difference.error == pytest.approx(math.sqrt(0.0002 / 4) / math.sqrt(5))
    assert difference.low == pytest.approx(0.02 - 2.776 * difference.error, rel=1e-3)
    assert difference.high == pytest.approx(0.02 + 2.776 * difference.error, rel=1e-3)
    assert difference.percent == pytest.approx(2.0201, abs=1e-4)
    assert difference.percent_error == pytest.approx(102.0201 * difference.error, rel=1e-6)


@pytest.mark.parametrize(
    ("added", "verdict"),
    [
        ([0.01, 0.03, 0.02, 0.02, 0.02], "worse"),
        ([-0.01, -0.03, -0.02, -0.02, -0.02], "better"),
        ([0.01, -0.03, 0.02, -0.02, 0.02], "not distinguishable"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], "not distinguishable"),
        ([0.5, 0.5, 0.5], "too few chunks to tell"),
        ([0.5], "too few chunks to tell"),
    ],
)
def test_the_verdict_in_words(added: list[float], verdict: str) -> None:
    base = [2.0 + 0.3 * place for place in range(len(added))]
    ours = measured([a + b for a, b in zip(base, added, strict=True)])
    assert compare.paired(ours, measured(base)).verdict == verdict


def test_the_interval_and_not_the_mean_decides() -> None:
    # mean 0.01, sd 0.02: error 0.00894 over 5 chunks, t 2.776, so the interval reaches below zero
    added = [0.01, 0.01 + 0.0253, 0.01 - 0.0253, 0.01 + 0.0126, 0.01 - 0.0126]
    assert (
        compare.paired(measured([1 + a for a in added]), measured([1.0] * 5)).verdict == "not distinguishable"
    )
    assert compare.paired(measured([1 + a for a in added * 8]), measured([1.0] * 40)).verdict == "worse"


@pytest.mark.parametrize("field", ["corpus", "context", "chunks"])
def test_other_chunks_are_refused(field: str) -> None:
    with pytest.raises(QuantmillError, match=rf"bench/Q4/perplexity\.json: {field} differs.*delete it"):
        compare.paired(measured([1.0] * 5), measured([1.0] * 5) | {field: 7}, "bench/Q4/perplexity.json")


def diverged(kld: list[float], **fields: Any) -> dict[str, Any]:
    chunks = {"corpus": "held-out", "context": 512, "chunks": len(kld), "reference_sha256": "0"}
    return chunks | {"by_chunk": {"kld": kld}} | fields


def test_divergences_are_compared_chunk_by_chunk() -> None:
    random = np.random.default_rng(0)
    text = random.lognormal(-4, 1, 40)  # what all files find hard alike
    small, large = text * 1.05 + random.normal(0, 1e-4, 40), text
    difference = compare.divergence(diverged(list(small)), diverged(list(large)))
    assert difference.mean == pytest.approx((small - large).mean())
    assert difference.error == pytest.approx((small - large).std(ddof=1) / math.sqrt(40))
    assert difference.low < difference.mean < difference.high
    assert difference.verdict == "worse"
    assert compare.divergence(diverged(list(large)), diverged(list(small))).verdict == "better"
    # unpaired, they could not be distinguished
    assert (small.mean() - large.mean()) < math.hypot(small.std(), large.std()) / math.sqrt(40)


def test_the_interval_of_a_divergence_is_the_same_each_time_and_not_symmetric() -> None:
    values = list(np.random.default_rng(1).lognormal(-4, 1.5, 40))
    difference = compare.divergence(diverged(values), diverged([0.0] * 40))
    assert difference == compare.divergence(diverged(values), diverged([0.0] * 40))
    assert difference.low > 0
    assert difference.high - difference.mean > 1.1 * (difference.mean - difference.low)


def test_a_file_beside_itself_is_not_distinguishable() -> None:
    difference = compare.divergence(diverged([0.1, 0.2, 0.3, 0.4]), diverged([0.1, 0.2, 0.3, 0.4]))
    assert (difference.mean, difference.low, difference.high, difference.verdict) == (
        0.0,
        0.0,
        0.0,
        "not distinguishable",
    )


def test_divergences_of_few_chunks_have_no_verdict() -> None:
    assert compare.divergence(diverged([0.1, 0.3, 0.2]), diverged([0.0] * 3)).verdict == compare.FEW


@pytest.mark.parametrize("field", ["corpus", "context", "chunks", "reference_sha256"])
def test_divergences_of_other_chunks_or_from_another_reference_are_refused(field: str) -> None:
    with pytest.raises(QuantmillError, match=rf"kld\.json: {field} differs.*delete it"):
        compare.divergence(diverged([1.0] * 5), diverged([1.0] * 5) | {field: 7})


def test_the_frontier() -> None:
    points = [(10, 1.0), (8, 2.0), (9, 3.0), (5, 2.0), (4, 9.0), (4, 9.0), (10, 1.5)]
    assert compare.pareto(points) == [True, False, False, True, True, True, False]
    assert compare.pareto([]) == []
