"""The files that were made and measured but are not offered, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from quantmill.card.view import View
from quantmill.judge import frontier

_FOLDED_FROM: Final = 7
"""A table of so many files is folded."""

_WORDS: Final = {
    frontier.DOMINATED: "dominated",
    frontier.COLLAPSED: "collapsed",
    frontier.DUPLICATE: "duplicate",
}
"""The reasons of withheld.json, as the card names them."""


def build(view: View) -> dict[str, Any] | None:
    """Where any file is withheld."""
    if not view.withheld:
        return None
    reasons = Counter(_WORDS[verdict.reason] for verdict in view.withheld)
    source = view.measured.source
    return {
        "withheld": view.withheld,
        "words": _WORDS,
        "folded": len(view.withheld) >= _FOLDED_FROM,
        "reasons": ", ".join(f"{number} {reason}" for reason, number in reasons.items()),
        "speed": source["speed"] is not None,
        "humaneval": source["humaneval"] is not None,
        "collapsed_distance": frontier.COLLAPSED_DISTANCE if source["embeddings"] else None,
        "collapsed_from": frontier.COLLAPSED_FROM,
        "humaneval_percent": 100 * frontier.HUMANEVAL_SHARE,
        "loops_percent": 100 * frontier.LOOPS_SHARE,
    }
