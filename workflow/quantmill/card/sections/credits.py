"""Credits, and what else there is to the licence."""

from __future__ import annotations

from typing import Any

from quantmill.card.view import View


def build(view: View) -> dict[str, Any]:
    """It is on every card that offers a file."""
    return {
        "credits": view.text("credits"),
        "license_notes": view.text("license_notes"),
        "base_models": view.base_models,
    }
