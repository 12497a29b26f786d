"""One chart of the page: altair's chart, its rows, its heading; and the form that all heat maps share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import altair as alt

WIDTH: Final = 640


@dataclass(frozen=True)
class Chart:
    """A chart: `name` is its id in the page, `text` a sentence about it, `drawn` altair's chart."""

    name: str
    heading: str
    text: str
    drawn: Any
    rows: list[dict[str, Any]]

    @property
    def spec(self) -> dict[str, Any]:
        """The chart's specification for Vega-Lite, checked by altair, with its rows."""
        spec: dict[str, Any] = self.drawn.to_dict()
        layers = [spec] if "data" in spec else spec["layer"]
        names = {layer["data"]["name"] for layer in layers}
        return spec | {"datasets": dict.fromkeys(names, self.rows)}


def heat_map(
    data: alt.NamedData,
    value: str,
    title: str,
    scale: alt.Scale,
    roles: list[str],
    tooltips: list[alt.Tooltip],
) -> alt.Chart:
    """Layers across, roles down; `value` is the field of the colour."""
    import altair as alt

    return (
        alt.Chart(data)
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("role:N", sort=roles, title=None),
            color=alt.Color(f"{value}:Q", title=title, scale=scale, legend=alt.Legend(orient="top")),
            tooltip=[
                alt.Tooltip("role:N"),
                alt.Tooltip("layer:O"),
                alt.Tooltip(f"{value}:Q", title=title, format=".4g"),
                *tooltips,
            ],
        )
        .properties(width=WIDTH, height=alt.Step(18))
    )
