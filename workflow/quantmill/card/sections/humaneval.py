"""HumanEval: what each file passed, beside the source; why answers failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from quantmill.card.view import View
from quantmill.formats.measurements import HumanEval
from quantmill.judge import frontier
from quantmill.judge.results import Results
from quantmill.judge.scores import HUMANEVAL
from quantmill.measures import SOURCE
from quantmill.text import md

_WORDS: Final = {
    "cut_off": "cut off",
    "limits": "over the limits",
}
"""Failures and audits of humaneval.json in words, where their names are not clear."""

_SETTINGS: Final = {
    "file": "problems of {}",
    "prompt": "prompted by {}",
    "max_tokens": "at most {} tokens",
    "limit": "the first {} problems",
}
"""Settings of humaneval.json in words, in the order of the card."""


def build(view: View) -> dict[str, Any] | None:
    """Where it was measured."""
    measured = view.measured
    first = measured.source["humaneval"]
    if first is None:
        return None
    settings: dict[str, Any] = {**first["settings"]}
    return {
        "problems": first["problems"],
        "settings": [
            words.format(md(settings[name]))
            for name, words in _SETTINGS.items()
            if settings.get(name) is not None
        ],
        "confined": settings.get("confined"),
        "validity_warning": measured.validity_warnings.get(HUMANEVAL),
        "rows": _rows(measured),
        "failures": _words(first["failures"]),
        "audits": _words(first["audits"]),
    }


def _rows(measured: Results) -> list[tuple[str, HumanEval, str]]:
    """The name of a row, its report, and the verdict beside the source; the source has none."""
    source = measured.source["humaneval"]
    rows = [(SOURCE, source, "")] if source else []
    for quant in measured.quants:
        if report := quant.measured["humaneval"]:
            collapsed = "**collapsed**, " if frontier.failing(quant, measured) else ""
            verdict = collapsed + measured.beside_source(quant, HUMANEVAL)
            rows.append((quant.name, report, verdict))
    return rows


def _words(counts: Mapping[str, object]) -> dict[str, str]:
    return {name: _WORDS.get(name, name) for name in counts}
