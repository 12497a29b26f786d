"""What the importance matrix saw: the mean square of each tensor's inputs, by layer and role."""

from __future__ import annotations

from collections.abc import Sequence

from quantmill.card.charts.chart import Chart, heat_map
from quantmill.judge.frontier import Unneeded
from quantmill.judge.results import Results


def build(results: Results, _: Sequence[Unneeded]) -> Chart | None:
    """Where there is an importance matrix with the means."""
    import altair as alt

    imatrix = results.imatrix
    entries = [entry for entry in imatrix["entries"] if (entry.get("mean") or 0) > 0] if imatrix else []
    if not entries:
        return None
    rows = [
        {"role": entry["role"], "layer": entry["layer"], "mean": float(f"{entry['mean']:.4g}")}
        for entry in entries
    ]
    roles = list(dict.fromkeys(entry["role"] for entry in entries))
    data, scale = alt.NamedData("importance"), alt.Scale(scheme="cividis", type="log")
    return Chart(
        "importance",
        "What the importance matrix saw",
        "The mean square of what each matrix is multiplied with, on the calibration text.",
        heat_map(data, "mean", "mean of the squared inputs", scale, roles, []),
        rows,
    )
