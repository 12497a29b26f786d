"""Where files were evaluated, in words: the layers on GPUs, and which files were where."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from quantmill.formats.devices import Placement
from quantmill.judge.results import Results
from quantmill.measures import SOURCE
from quantmill.text import size


def places(
    results: Results, measure: Literal["kld", "perplexity", "embeddings", "speed"]
) -> list[tuple[str, list[str]]]:
    """Where a measure was computed, and of which files there; empty where all of it was on the CPU."""
    rows = [(SOURCE, results.source[measure])]
    rows += [(quant.name, quant.measured[measure]) for quant in results.quants]
    names: dict[str, list[str]] = defaultdict(list)
    for name, report in rows:
        if report is not None:
            names[" and ".join(map(in_words, report.get("devices", []))) or _CPU].append(name)
    return [] if list(names) == [_CPU] else list(names.items())


def in_words(placement: Placement) -> str:
    """One place, such as `20 of 31 layers on CUDA0 (NVIDIA L4; ...), the others on the CPU`."""
    if not placement["devices"]:
        return _CPU
    devices = ", ".join(
        f"{part['device']} ({part['description']}; {size(part['weights'])} of weights, "
        f"{size(part['cache'] + part['compute'])} beside them)"
        for part in placement["devices"]
    )
    if placement["layers"] == placement["of"]:
        return f"all {placement['of']} layers on {devices}"
    return f"{placement['layers']} of {placement['of']} layers on {devices}, the others on the CPU"


_CPU = "all layers on the CPU"
