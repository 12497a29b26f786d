"""Which file for which memory: the best that fits, at each context, by memory.json.

A device of 16 GB has 16 GiB; `RESERVE` of it stays free for whatever else runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from quantmill.devices import CACHES, DEVICES, RESERVE
from quantmill.formats.source import MemoryRow
from quantmill.judge import frontier
from quantmill.judge.quant import Quant
from quantmill.judge.results import Results
from quantmill.text import GIB


@dataclass(frozen=True)
class Fitting:
    """A file that fits, with its context's cache of a type; `total` bytes in all."""

    quant: Quant
    cache: str
    total: int


@dataclass(frozen=True)
class Devices:
    """One row: devices with the same answers, the smallest to the largest (GB), a file for each context."""

    smallest: int
    largest: int
    fitting: list[Fitting | None]


def with_tables(results: Results) -> list[Quant]:
    """The files that memory.json has a table of."""
    return [quant for quant in results.quants if quant.memory]


def contexts(results: Results) -> list[int]:
    """The contexts (tokens) of the tables, ascending."""
    return sorted({row["context"] for quant in with_tables(results) for row in _rows(quant)})


def recommendable(results: Results) -> list[Quant]:
    """Those of them that may be recommended for a device: neither collapsed nor rejected."""
    return [quant for quant in frontier.recommendable(results) if quant.memory]


def by_device(results: Results) -> list[Devices]:
    """The best file for each device and context; devices with the same answers are one row.

    The best is the one with the smallest loss, with the first cache with which
    anything fits; where nothing can be ranked, the largest. Collapsed and
    rejected files are left out. So are files no smaller than the source, where
    any file is smaller.
    """
    usable = frontier.smaller(recommendable(results), results)
    ranked = not results.unranked and all(quant.loss for quant in usable)
    order = sorted(usable, key=frontier.loss if ranked else lambda quant: -quant.bytes)
    columns = contexts(results)
    rows = [(gb, [_fitting(order, context, gb * GIB - RESERVE) for context in columns]) for gb in DEVICES]
    merged = []
    for _, group in groupby(rows, key=lambda row: [f and (f.quant.name, f.cache) for f in row[1]]):
        same = list(group)
        merged.append(Devices(same[0][0], same[-1][0], same[0][1]))
    return merged if any(any(devices.fitting) for devices in merged) else []


def per_token(quant: Quant) -> dict[str, float]:
    """Bytes that a token of context takes, by the cache's type, over the longest context of the table."""
    longest: dict[str, MemoryRow] = {}
    for row in _rows(quant):
        if row["context"] >= longest.get(row["cache"], row)["context"]:
            longest[row["cache"]] = row
    return {cache: row["cache_bytes"] / row["context"] for cache, row in longest.items()}


def _fitting(order: list[Quant], context: int, available: int) -> Fitting | None:
    in_tables = {row["cache"] for quant in order for row in _rows(quant)}
    first = [cache for cache in CACHES if cache in in_tables]
    for cache in [*first, *sorted(in_tables - set(CACHES))]:
        for quant in order:
            for row in _rows(quant):
                if (row["context"], row["cache"]) == (context, cache) and row["total_bytes"] <= available:
                    return Fitting(quant, cache, row["total_bytes"])
    return None


def _rows(quant: Quant) -> list[MemoryRow]:
    return quant.memory["rows"] if quant.memory else []
