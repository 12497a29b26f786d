"""The recipe of each file, and how each tensor came by its type."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from quantmill.card import mix
from quantmill.card.view import View
from quantmill.formats.plan import PlanRow
from quantmill.judge.quant import Quant


def build(view: View) -> dict[str, Any]:
    """It is on every card that offers a file."""
    return {"files": [(quant, by_reason(quant)) for quant in (*view.offered, *view.drafts)]}


def by_reason(quant: Quant) -> list[dict[str, Any]]:
    """How the tensors came by their types: reason, type, tensors, bytes and roles, most bytes first."""
    groups: dict[tuple[str, str], list[PlanRow]] = defaultdict(list)
    for tensor in quant.tensors:
        groups[tensor.reason, tensor.type].append(tensor)
    rows = [
        {
            "reason": reason,
            "type": type_,
            "tensors": len(members),
            "bytes": sum(tensor.bytes for tensor in members),
            "roles": mix.roles_of(members),
        }
        for (reason, type_), members in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])
