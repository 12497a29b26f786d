"""Which file for which memory: the best that fits, at each context, by memory.json.

A card of 16 GB has 16 GiB; `RESERVE` of it is left for whatever else runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from quantmill.judge import frontier
from quantmill.judge.results import Quant, Results
from quantmill.text import GIB

DEVICES: Final = (8, 12, 16, 24, 32, 48)
"""GB as they are sold, GiB of memory."""

RESERVE: Final = GIB

CACHES: Final = ("f16", "q8_0", "q4_0")
"""The caches that are tried, in this order; others come after them."""


@dataclass(frozen=True)
class Fitting:
    """A file that fits, with its context's cache of a type; `total` bytes in all."""

    quant: Quant
    cache: str
    total: int


@dataclass(frozen=True)
class Devices:
    """One row: devices of which the same is true, the smallest to the largest (GB), and a file a context."""

    smallest: int
    largest: int
    fitting: list[Fitting | None]


def measured(results: Results) -> list[Quant]:
    """The files that memory.json has a table of."""
    return [quant for quant in results.quants if quant.memory]


def contexts(results: Results) -> list[int]:
    """The contexts (tokens) of the tables, ascending."""
    return sorted({row["context"] for quant in measured(results) for row in _rows(quant)})


def recommendable(results: Results) -> list[Quant]:
    """Those of them that a device is told of: not what has collapsed or is not recommended."""
    return [quant for quant in frontier.sound(results) if quant.memory]


def by_device(results: Results) -> list[Devices]:
    """The best file for each device and context; devices of which the same is true are one row.

    The best is the one of the least loss, with the first cache of which
    anything fits; where nothing can be ranked, the largest. What is not
    recommended or has collapsed is left out, and what is no smaller than the
    source where anything is.
    """
    usable = frontier.smaller(recommendable(results), results)
    told = not results.unranked and all(quant.loss for quant in usable)
    order = sorted(usable, key=frontier.loss if told else lambda quant: -quant.bytes)
    known = contexts(results)
    rows = [(gb, [_fitting(order, context, gb * GIB - RESERVE) for context in known]) for gb in DEVICES]
    merged = []
    for _, alike in groupby(rows, key=lambda row: [f and (f.quant.name, f.cache) for f in row[1]]):
        members = list(alike)
        merged.append(Devices(members[0][0], members[-1][0], members[0][1]))
    return merged if any(any(devices.fitting) for devices in merged) else []


def per_token(quant: Quant) -> dict[str, float]:
    """Bytes that a token of context takes, by the cache's type, over the longest context of the table."""
    longest: dict[str, dict[str, Any]] = {}
    for row in _rows(quant):
        if row["context"] >= longest.get(row["cache"], row)["context"]:
            longest[row["cache"]] = row
    return {cache: row["cache_bytes"] / row["context"] for cache, row in longest.items()}


def _fitting(order: list[Quant], context: int, room: int) -> Fitting | None:
    found = {row["cache"] for quant in order for row in _rows(quant)}
    for cache in [*(c for c in CACHES if c in found), *sorted(found - set(CACHES))]:
        for quant in order:
            for row in _rows(quant):
                if (row["context"], row["cache"]) == (context, cache) and row["total_bytes"] <= room:
                    return Fitting(quant, cache, row["total_bytes"])
    return None


def _rows(quant: Quant) -> list[dict[str, Any]]:
    return quant.memory["rows"] if quant.memory else []
