"""The files in the repository, each with what it is."""

from __future__ import annotations

from typing import Any

from quantmill.card.view import View


def build(view: View) -> dict[str, Any]:
    """It is on every card that offers a file."""
    included = set(view.config["include"])
    return {
        "offered": view.offered,
        "imatrix": view.measured.imatrix is not None and "imatrix" in included,
        "included": included,
        "modelfiles": bool(view.in_ollama),
        "plots": view.plots,
        "repo": view.repo,
    }
