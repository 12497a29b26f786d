"""Embeddings, or a reranker's scores: how far each file's are from the source's, and pairs of files."""

from __future__ import annotations

from typing import Any

from quantmill.card.places import places
from quantmill.card.sections.divergence import pairs
from quantmill.card.view import View


def build(view: View) -> dict[str, Any] | None:
    """Where they were measured."""
    measured = view.measured
    source = measured.source["embeddings"]
    if source is None:
        return None
    return {
        "source": source,
        "ranks": source["pooling"] == "rank",
        "places": places(measured, "embeddings"),
        "rows": [
            (quant.name, report, quant.distance)
            for quant in measured.quants
            if (report := quant.measured["embeddings"])
        ],
        "pairs": pairs(measured, "embeddings"),
        "unranked": measured.unranked,
        "corpus": measured.corpora[source["corpus"]],
    }
