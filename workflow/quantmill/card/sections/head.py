"""The head of the card: front matter, title, the publisher's own text, and the first picture."""

from __future__ import annotations

from typing import Any

from quantmill.card.front_matter import front_matter
from quantmill.card.view import View
from quantmill.judge import advice


def build(view: View) -> dict[str, Any]:
    """It is on every card."""
    return {
        "front_matter": front_matter(view),
        "title": view.title,
        "about": view.text("about"),
        "description": advice.description(view.shown),
        "measure": view.measured.measure,
        "withheld": bool(view.withheld),
        "plots": view.plots,
        "absolute": view.absolute,
    }
