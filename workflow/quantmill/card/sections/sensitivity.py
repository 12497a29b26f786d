"""Sensitivity: what each tensor is worth, and how that was measured or where it comes from."""

from __future__ import annotations

from typing import Any

from quantmill.card.view import View
from quantmill.judge import sensitivity
from quantmill.judge.frontier import LOSSES


def build(view: View) -> dict[str, Any] | None:
    """Where the sensitivities of any tensor are known."""
    measured = view.measured
    at_one_type = sensitivity.at_one_type(measured.sensitivities, LOSSES[measured.sensitive_by])
    report = measured.sensitivity
    if at_one_type is None or report is None:
        return None
    return {
        "sensitivity": at_one_type,
        "report": report,
        "loss": LOSSES[measured.sensitive_by],
        "corpus": None if "how" in report else measured.corpora[report["corpus"]],
        "plots": view.plots,
        "absolute": view.absolute,
    }
