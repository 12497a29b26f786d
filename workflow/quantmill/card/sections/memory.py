"""Memory: what each file needs at each context, and the longest context that fits a device."""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from typing import Any

from quantmill.card.view import View
from quantmill.formats.source import ProjectorMemory, RecipeMemory
from quantmill.judge import memory
from quantmill.text import GIB


def build(view: View) -> dict[str, Any] | None:
    """Where memory.json has tables of any file."""
    quants = memory.with_tables(view.shown)
    if not quants:
        return None
    per_token = memory.per_token(quants[0])
    beside = [quant.memory.get("projectors", []) if quant.memory else [] for quant in quants]
    return {
        "per_token": per_token,
        "rows": [(quant.name, row) for quant in quants if quant.memory for row in quant.memory["rows"]],
        "caches": list(per_token),
        "longest": [(quant.name, *row) for quant in quants for row in longest(quant.memory)],
        "projectors": beside[0] if beside else [],
        "beside": [
            (quant.name, *row)
            for quant, projectors in zip(quants, beside, strict=True)
            for row in longest(next(iter(projectors), None))
        ],
    }


def longest(table: RecipeMemory | ProjectorMemory | None) -> list[tuple[str, dict[str, int]]]:
    """The longest context (tokens) that fits, by cache; devices with the same answer are one row."""
    devices: dict[int, dict[str, int]] = defaultdict(dict)
    for fit in table["fits"] if table else []:
        devices[fit["total_bytes"] // GIB][fit["cache"]] = fit["context"]
    rows = []
    for contexts, group in groupby(devices.items(), key=lambda device: device[1]):
        sizes = [gib for gib, _ in group]
        rows.append((f"{sizes[0]} to {sizes[-1]} GB" if sizes[1:] else f"{sizes[0]} GB", contexts))
    return rows
