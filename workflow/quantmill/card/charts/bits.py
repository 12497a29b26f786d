"""Bits per weight of a chosen file, by layer and role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantmill.card import mix
from quantmill.card.charts.chart import Chart, heat_map
from quantmill.judge.frontier import Unneeded
from quantmill.judge.results import Results


def build(results: Results, _: Sequence[Unneeded]) -> Chart:
    """It is on every page."""
    import altair as alt

    rows: list[dict[str, Any]] = [
        {"file": quant.name, "role": role, "layer": layer, "bits": round(value, 3), "type": type_}
        for quant in results.quants
        for (role, layer), (value, type_) in mix.cells(quant).items()
    ]
    bits = [row["bits"] for row in rows]
    names = [quant.name for quant in results.quants]
    file = alt.param(name="file", value=names[0], bind=alt.binding_select(options=names, name="File "))
    scale = alt.Scale(scheme="viridis", domain=[min(bits), max(bits)])
    data, tooltips = alt.NamedData("bits"), [alt.Tooltip("type:N")]
    drawn = heat_map(data, "bits", "bits per weight", scale, mix.roles(results), tooltips)
    return Chart(
        "bits",
        "Bits per weight by layer and role",
        "Layer -1 holds the tensors outside the layers. Point at a cell for its type; choose a file.",
        drawn.transform_filter("datum.file == file").add_params(file),
        rows,
    )
