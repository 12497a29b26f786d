"""The importance matrix: where it comes from, and what it did not see."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from quantmill.card.view import View
from quantmill.formats.importance import UnderSampled
from quantmill.text import md

_NAMED: Final = 8
"""At most so many tensors without an entry are named."""


def build(view: View) -> dict[str, Any] | None:
    """Where there is an importance matrix."""
    imatrix = view.measured.imatrix
    if imatrix is None:
        return None
    experts = imatrix["experts_under_floor"]
    return {
        "imatrix": imatrix,
        "imported": imatrix.get("imported"),
        "used_by": _used_by([quant.name for quant in view.shown.quants if quant.plan["imatrix"]]),
        "corpus": view.measured.corpora[imatrix["corpus"]] if "corpus" in imatrix else None,
        "missing": imatrix["missing"],
        "missing_named": imatrix["missing"][:_NAMED],
        "under_sampled": len(experts),
        "experts": under_sampled_experts(experts),
    }


def _used_by(files: list[str]) -> str:
    """Which files use it, in a sentence (markdown)."""
    return f"Used by: {md(', '.join(files))}." if files else "No file uses it."


def under_sampled_experts(experts: list[UnderSampled]) -> list[dict[str, Any]]:
    """Experts that saw few tokens, a row for the tensors of a layer that saw the same.

    `experts` are those of imatrix.json; a row has `tensors`, and `seen`: expert and tokens, fewest first.
    """
    seen: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for entry in experts:
        seen[entry["name"]].append((entry["count"], entry["expert"]))
    same: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, counts in seen.items():
        layer = ".".join(name.split(".")[:2])
        same[layer, *(f"{expert} ({count:,})" for count, expert in sorted(counts))].append(name)
    return [{"tensors": names, "seen": list(seen_by)} for (_, *seen_by), names in same.items()]
