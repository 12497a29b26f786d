"""Whether the measurements can be trusted: what the source's own measurements show.

The source is measured like any file. Where it does badly, the text, the task
or the run is at fault, not a quantization. Then no file is ranked by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from quantmill.formats.measurements import Divergence
from quantmill.judge.compare import Z_95
from quantmill.judge.quant import Measurements
from quantmill.judge.scores import HUMANEVAL, tasks_by_name

HIGHEST_PERPLEXITY: Final = 1000.0
"""A model that reads its own kind of text is far below this. Above it, the text or the run is at fault."""

LOWEST_PERPLEXITY: Final = 1.1
"""No text is that predictable to a model that has not seen it. Its training text shows no loss."""

NOISE_FLOOR_SHARE: Final = 0.1
"""The highest valid noise floor: the source's divergence from itself, as a share of the closest file's."""


def warnings(source: Measurements, divergences: Iterable[Divergence]) -> dict[str, str]:
    """Why a measure or task is not valid, by its name, in words; `divergences` are the files' kld.json."""
    perplexity, kld = source["perplexity"], source["kld"]
    value = perplexity["perplexity"] if perplexity else kld["perplexity"]["value"] if kld else None
    messages = {"perplexity": of_perplexity(value), "kld": of_divergence(kld, divergences)}
    if humaneval := source["humaneval"]:
        messages[HUMANEVAL] = of_score(HUMANEVAL, humaneval["pass_at_1"], 0.0, None)
    for name, task in tasks_by_name(source["tasks"]):
        messages[name] = of_score(name, task["value"], task["stderr"] or 0.0, task["chance"])
    return {measure: message for measure, message in messages.items() if message}


def of_perplexity(source: float | None) -> str:
    """What is wrong with the source's own perplexity, in words; empty where nothing is."""
    if source is None or LOWEST_PERPLEXITY <= source <= HIGHEST_PERPLEXITY:
        return ""
    if source < LOWEST_PERPLEXITY:
        return (
            f"the source's own perplexity is {source:.3f}: it almost knows this text by heart, "
            "so differences mean nothing"
        )
    return (
        f"the source's own perplexity is {source:,.0f}: either this text is foreign to the model "
        "or the run is broken, so differences mean nothing"
    )


def of_divergence(source: Divergence | None, files: Iterable[Divergence]) -> str:
    """What is wrong with the noise floor of the divergences (kld.json of the source, of the files)."""
    if source is None:
        return ""
    files = list(files)
    noise_floor = abs(source["kld"]["mean"])
    if "cpu" in source and any(file.get("devices") != source.get("devices") for file in files):
        noise_floor = max(noise_floor, abs(source["cpu"]["mean"]))
    closest = min((abs(file["kld"]["mean"]) for file in files), default=0.0)
    if noise_floor == 0 or noise_floor < NOISE_FLOOR_SHARE * closest:
        return ""
    return (
        f"the source diverges from itself by {noise_floor:.1e}, where 0 is expected, and the closest file "
        f"by {closest:.1e}: the evaluation is not repeatable, so no file is ranked by KL divergence"
    )


def of_score(name: str, value: float, error: float, chance: float | None) -> str:
    """What is wrong with the source's own score in a task, shares; `error` is its standard error."""
    if value <= 0:
        return f"{name}: the source itself scores 0, so the task cannot distinguish files"
    if chance is not None and value - Z_95 * error <= chance:
        return (
            f"{name}: the source itself is at chance ({100 * value:.1f} ± {100 * error:.1f} %, guessing "
            f"{100 * chance:.1f} %), so the task cannot distinguish files"
        )
    return ""
