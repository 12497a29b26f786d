"""Size-targeted files: predicted and measured loss, the acceptance test, and how the types were chosen."""

from __future__ import annotations

from typing import Any

from quantmill.card.view import View


def build(view: View) -> dict[str, Any] | None:
    """Where any file is size-targeted."""
    files = view.measured.size_targeted
    if not files:
        return None
    loss = "KLD" if view.measured.sensitive_by == "kld" else "distance"
    return {"files": files, "unranked": view.measured.unranked, "loss": loss}
