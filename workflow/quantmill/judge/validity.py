"""Whether the measurements can be trusted at all: what the source itself says of them.

The source is measured like any file. Where it does badly, the text, the task
or the run is at fault and not a quantization, and nothing is ranked on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

HIGHEST_PERPLEXITY = 1000.0
"""A model that reads its own kind of text is far below; above it the text or the run is at fault."""

LOWEST_PERPLEXITY = 1.1
"""No text is that predictable to a model that has not seen it; in its training text nothing shows."""

FLOOR_SHARE = 0.1
"""The source's divergence from itself, as a share of the least file's: above it the noise ranks."""


def of_perplexity(source: float | None) -> str:
    """What is wrong with the source's own perplexity, in words; empty where nothing is."""
    if source is None or LOWEST_PERPLEXITY <= source <= HIGHEST_PERPLEXITY:
        return ""
    if source < LOWEST_PERPLEXITY:
        return (
            f"the source's own perplexity is {source:.3f}: it all but knows this text by heart, "
            "and the differences mean nothing"
        )
    return (
        f"the source's own perplexity is {source:,.0f}: either this text is foreign to the model "
        "or the run is broken, and the differences mean nothing"
    )


def of_divergence(source: dict[str, Any] | None, files: Iterable[dict[str, Any]]) -> str:
    """What is wrong with the floor of the divergences (kld.json of the source, of the files)."""
    if source is None:
        return ""
    floor = abs(source["kld"]["mean"])
    least = min((abs(file["kld"]["mean"]) for file in files), default=0.0)
    if floor == 0 or floor < FLOOR_SHARE * least:
        return ""
    return (
        f"the source diverges from itself by {floor:.1e}, where 0 is expected and the closest file "
        f"diverges by {least:.1e}: its evaluation does not repeat, and KL divergence ranks nothing here"
    )


def of_score(name: str, value: float, error: float, chance: float | None) -> str:
    """What is wrong with the source's own score in a task, shares; `error` is its standard error."""
    if value <= 0:
        return f"{name}: the source itself scores nothing, so that the task tells no files apart"
    if chance is not None and value - _SURE * error <= chance:
        return (
            f"{name}: the source itself is at chance ({100 * value:.1f} ± {100 * error:.1f} %, guessing "
            f"{100 * chance:.1f} %), so that the task tells no files apart"
        )
    return ""


_SURE = 1.96  # standard errors of a two-sided 95 % interval
