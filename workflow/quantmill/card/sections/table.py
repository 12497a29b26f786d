"""The main table: a row for the source and each file, with columns for each measure that was taken."""

from __future__ import annotations

from typing import Any

from quantmill.card.columns import columns, rows
from quantmill.card.view import View
from quantmill.formats.publication import Part


def build(view: View) -> dict[str, Any]:
    """It is on every card that offers a file."""
    measured, other_engine = view.measured, bool(view.other_engine)
    shown = columns(measured, other_engine)
    speed = measured.source["speed"]
    return {
        "columns": shown,
        "rows": [[column.cell(row) for column in shown] for row in rows(view.shown)],
        "measured": measured.source,
        "measure": None if measured.unranked else measured.measure,
        "other_engine": other_engine,
        "two_roundings": any(column.header == "Rounding" for column in shown),
        "prompt": speed["prompt"]["tokens"] if speed else None,
        "generate": speed["generate"]["tokens"] if speed else None,
        "checksums": _checksums(view),
    }


def _checksums(view: View) -> str:
    """The sha256 of each file and of the source, as `sha256sum` writes them."""
    lines = [
        f"{part['sha256']}  {part['file']}"
        for quant in (*view.shown.quants, *view.drafts)
        for part in quant.parts or [Part(file=quant.file, bytes=quant.bytes, sha256=quant.sha256)]
    ]
    return "\n".join([*lines, f"{view.shown.facts['sha256']}  {view.config['source']['file']}"])
