"""Perplexity: each file's, and the paired difference to the source."""

from __future__ import annotations

from typing import Any

from quantmill.card.places import places
from quantmill.card.view import View


def build(view: View) -> dict[str, Any] | None:
    """Where it was measured."""
    measured = view.measured
    source, kld = measured.source["perplexity"], measured.source["kld"]
    if source is None:
        return None
    shown_before = kld is not None and kld["corpus"] == source["corpus"]
    return {
        "source": source,
        "places": [] if shown_before else places(measured, "perplexity"),
        "rows": [
            (quant.name, report, quant.difference)
            for quant in measured.quants
            if (report := quant.measured["perplexity"])
        ],
        "unranked": measured.unranked,
        "corpus": None if shown_before else measured.corpora[source["corpus"]],
    }
