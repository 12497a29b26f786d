"""The draft head: what the model accepts of it, what drafts gain behind a server, and the best length."""

from __future__ import annotations

from typing import Any, NamedTuple

from quantmill.card.view import View
from quantmill.formats.measurements import Rate, Served
from quantmill.judge import draft
from quantmill.judge.quant import Measurements
from quantmill.measures import SOURCE


class Row(NamedTuple):
    """The source or a file: `best` is None where no length is faster than none, or speed was not measured."""

    name: str
    type: str
    acceptances: list[draft.Acceptance]
    served: Served | None
    plain: Rate | None
    gains: list[draft.Gain]
    best: draft.Gain | None


def build(view: View) -> dict[str, Any] | None:
    """Where acceptance or speed with drafts was measured, of a file that has a head."""
    measured = view.measured
    files = {quant.name: quant for quant in measured.quants}
    of_rows = {SOURCE: measured.source} | {name: quant.measured for name, quant in files.items()}
    rows = [row for name, one in of_rows.items() if (row := _row(name, one)).acceptances or row.gains]
    if not rows:
        return None
    lengths = {one.length for row in rows for one in row.acceptances}
    drafting = {one.length for row in rows for one in row.gains}
    report = measured.source["draft"]
    return {
        "source": report,
        "rows": rows,
        "lengths": sorted(lengths),
        "drafting": sorted(drafting),
        "server": next((row.served["server"] for row in rows if row.served and row.gains), None),
        "repetitions": max((len(gain.rate["samples"]) for row in rows for gain in row.gains), default=0),
        "commands": [
            (files[row.name].file, row.best.length) for row in rows if row.name in files and row.best
        ],
        "context": view.context,
        "broken": draft.broken(measured),
        "corpus": measured.corpora[report["corpus"]] if report else None,
    }


def _row(name: str, measured: Measurements) -> Row:
    report, served = measured["draft"], measured["served"]
    kind = (report and report["type"]) or ""
    plain = draft.without(served) if served else None
    gains, best = draft.gains(served), draft.best(served)
    return Row(name, kind, draft.acceptances(report), served, plain, gains, best)
