"""What is in each file: bits per weight by role, fallbacks, and tensors by type."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from quantmill.card import mix
from quantmill.card.view import View
from quantmill.formats.plan import PlanRow
from quantmill.judge.quant import Quant
from quantmill.judge.results import Results


def build(view: View) -> dict[str, Any]:
    """It is on every card that offers a file."""
    return {
        "description": description(view.pick),
        "plots": view.plots,
        "absolute": view.absolute,
        "roles": mix.roles(view.shown),
        "bits": {quant.name: mix.bits_by_role(quant) for quant in view.offered},
        "fallbacks": fallbacks(view.shown),
        "files": [(quant, *mix.uneven(quant)) for quant in view.offered],
    }


def description(quant: Quant) -> str:
    """What the picture of bits shows, for those who cannot see it (plain text)."""
    above, below = mix.uneven(quant)
    sentences = ["Bits per weight by layer and role.", f"In {quant.name} most bytes are {quant.type}."]
    sentences += [f"More bits: {'; '.join(above)}."] if above else []
    sentences += [f"Fewer bits: {'; '.join(below)}."] if below else []
    return " ".join(sentences).replace("`", "")


def fallbacks(results: Results) -> list[dict[str, Any]]:
    """Types that a tensor's shape forced: per file and pair of types, how many, of which roles and widths."""
    rows = []
    for quant in results.quants:
        tensors = {tensor.name: tensor for tensor in quant.tensors}
        groups: dict[tuple[str, str], list[PlanRow]] = defaultdict(list)
        for fallback in quant.plan["fallbacks"]:
            groups[fallback["wanted"], fallback["type"]].append(tensors[fallback["name"]])
        rows += [
            {
                "name": quant.name,
                "requested": requested,
                "type": type_,
                "tensors": len(members),
                "of": len(tensors),
                "roles": mix.roles_of(members),
                "widths": sorted({tensor.shape[0] for tensor in members}),
            }
            for (requested, type_), members in groups.items()
        ]
    return rows
