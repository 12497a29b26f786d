"""Which file should I choose: the advice in words, and the best file for each device."""

from __future__ import annotations

from typing import Any

from quantmill.card.view import View
from quantmill.judge import advice, draft, frontier, memory


def build(view: View) -> dict[str, Any]:
    """It is on every card that offers a file."""
    results, measured = view.shown, view.measured
    recommendable = memory.recommendable(results)
    return {
        "facts": measured.facts,
        "kind": measured.kind,
        "files": len(view.offered),
        "requantized": [quant.name for quant in results.quants if quant.plan["requantized"]],
        "validity_warnings": [
            warning for warning in measured.validity_warnings.values() if warning != measured.unranked
        ],
        "unsound": results.unsound,
        "broken_head": draft.broken(results),
        "choice": advice.choice(results),
        "ranked": measured.measure is not None and not measured.unranked,
        "devices": memory.by_device(results),
        "contexts": memory.contexts(results),
        "smaller_only": frontier.smaller(recommendable, results) != recommendable,
    }
