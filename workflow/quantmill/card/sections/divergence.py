"""KL divergence: its statistics for each file, and pairs of files compared."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any, Final

from quantmill.card.places import places
from quantmill.card.view import View
from quantmill.judge import compare
from quantmill.judge.quant import Quant
from quantmill.judge.results import Results

_ALL_PAIRS_UP_TO: Final = 8
"""With more files, each is compared with the next larger one alone."""


def build(view: View) -> dict[str, Any] | None:
    """Where it was measured."""
    measured = view.measured
    source = measured.source["kld"]
    if source is None:
        return None
    return {
        "source": source,
        "noise_floor": measured.noise_floor,
        "places": places(measured, "kld"),
        "cpu": source.get("cpu"),
        "rows": [(quant.name, report) for quant in measured.quants if (report := quant.measured["kld"])],
        "validity_warning": measured.validity_warnings.get("kld"),
        "pairs": pairs(measured, "kld"),
        "unranked": measured.unranked,
        "corpus": measured.corpora[source["corpus"]],
    }


def pairs(results: Results, measure: str) -> list[tuple[Quant, Quant, compare.Paired]]:
    """Any two files, the smaller first, with the paired difference of their losses, where they are judged by
    that measure.
    """
    if results.measure != measure:
        return []
    few = len(results.quants) <= _ALL_PAIRS_UP_TO
    chosen = combinations(results.quants, 2) if few else pairwise(results.quants)
    return [(smaller, larger, smaller.against(larger)) for larger, smaller in chosen]
