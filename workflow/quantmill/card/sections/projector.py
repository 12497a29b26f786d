"""A projector's vectors of pictures and sounds: how far each file's are from the source's, and pairs."""

from __future__ import annotations

from typing import Any

from quantmill.card.sections.divergence import pairs
from quantmill.card.view import View
from quantmill.formats.projected import MOST_ANSWERED as MOST


def build(view: View) -> dict[str, Any] | None:
    """Where they were measured."""
    measured = view.measured
    source = measured.source["projector"]
    if source is None:
        return None
    return {
        "source": source,
        "most": MOST,
        "rows": [
            (quant.name, report, quant.distance)
            for quant in measured.quants
            if (report := quant.measured["projector"])
        ],
        "pairs": pairs(measured, "embeddings"),
        "unranked": measured.unranked,
    }
