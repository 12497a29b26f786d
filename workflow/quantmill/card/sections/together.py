"""The files of the projectors that are in the same repository."""

from __future__ import annotations

from typing import Any

from quantmill.card.view import View


def build(view: View) -> dict[str, Any] | None:
    """Where a projector is published together with its language model."""
    files = view.projectors
    if not files:
        return None
    measured = [one.measured for one in files if one.measured]
    return {
        "files": files,
        "measured": measured,
        "asked": next((report["answer"] for report in measured if "answer" in report), None),
        "several": len({one.model for one in files}) > 1,
    }
