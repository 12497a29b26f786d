"""That no file is offered, where all are withheld."""

from __future__ import annotations

from typing import Any

from quantmill.card.view import View


def build(view: View) -> dict[str, Any] | None:
    """Where all files are withheld."""
    return None if view.offered else {"withheld": len(view.withheld)}
