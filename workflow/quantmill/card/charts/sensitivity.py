"""The loss with one tensor alone at a chosen type, by layer and role."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from quantmill.card.charts.chart import Chart, heat_map
from quantmill.judge.frontier import LOSSES, Unneeded
from quantmill.judge.results import Results


def build(results: Results, _: Sequence[Unneeded]) -> Chart | None:
    """Where the sensitivities of any tensor are known."""
    import altair as alt

    divergence: dict[tuple[str, str, int], float] = {}
    how: dict[tuple[str, str, int], str] = {}
    for row in results.sensitivities:
        if not isnan(row.kld):
            key = (row.type, row.role, row.layer)
            divergence[key] = divergence.get(key, 0.0) + row.kld
            how[key] = row.how
    if not divergence:
        return None
    # A logarithmic scale has no place for noise that came out at or below zero.
    least = min((value for value in divergence.values() if value > 0), default=1e-9)
    rows = [
        {
            "kind": kind,
            "role": role,
            "layer": layer,
            "kld": float(f"{max(value, least):.4g}"),
            "how": how[kind, role, layer],
        }
        for (kind, role, layer), value in divergence.items()
    ]
    types = list(dict.fromkeys(kind for kind, _, _ in divergence))
    roles = list(dict.fromkeys(role for _, role, _ in divergence))
    chosen = alt.param(name="kind", value=types[0], bind=alt.binding_select(options=types, name="Type "))
    data, scale = alt.NamedData("sensitivity"), alt.Scale(scheme="magma", type="log")
    loss = LOSSES[results.sensitive_by]
    drawn = heat_map(data, "kld", loss, scale, roles, [alt.Tooltip("how:N")])
    return Chart(
        "sensitivity",
        "Sensitivity of each tensor",
        f"The {loss} of the model with that tensor alone at the chosen type.",
        drawn.transform_filter("datum.kind == kind").add_params(chosen),
        rows,
    )
