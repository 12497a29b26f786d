"""Rounding with error feedback: what it learned from, and each file beside the same types to nearest."""

from __future__ import annotations

from typing import Any

from quantmill.card.view import View
from quantmill.text import code


def build(view: View) -> dict[str, Any] | None:
    """Where any file is rounded with error feedback."""
    measured, moments = view.measured, view.measured.moments
    by = {quant.name: quant.rounding for quant in measured.quants if quant.rounding != "nearest"}
    names, roundings = list(by), sorted(set(by.values()), reverse=True)
    if not names or moments is None:
        return None
    shown = measured.imatrix is not None and measured.imatrix.get("corpus") == moments["corpus"]
    return {
        "files": _files(names, len(measured.quants)),
        "roundings": " or ".join(map(code, roundings)),
        "crossed": "gptaq" in roundings,
        "moments": moments,
        "corpus": None if shown else measured.corpora[moments["corpus"]],
        "compared": measured.rounded,
        "unranked": measured.unranked,
    }


def _files(names: list[str], of: int) -> str:
    """Which of so many files were rounded so, as the beginning of a sentence (markdown)."""
    if len(names) == of:
        return "The file was" if of == 1 else "All files were"
    return f"{', '.join(map(code, names))} {'was' if len(names) == 1 else 'were'}"
