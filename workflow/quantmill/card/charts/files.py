"""Size against quality: each file's size and loss, with a choice of the type and of the largest size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from quantmill.card.charts.chart import WIDTH, Chart
from quantmill.judge import advice, frontier
from quantmill.judge.frontier import Unneeded
from quantmill.judge.results import Results
from quantmill.text import GIB, MIB

if TYPE_CHECKING:
    import altair as alt

_COLORS: Final = {"best of its size": "#0072B2", "other": "#8a8a8a", "withheld": "#D55E00"}
_SHAPES: Final = ["circle", "diamond", "cross"]


def build(results: Results, withheld: Sequence[Unneeded]) -> Chart:
    """It is on every page; where no quality was measured, a bar shows each file's size."""
    import altair as alt

    unit, unit_name = (GIB, "GiB") if results.quants[0].bytes >= GIB else (MIB, "MiB")
    rows = _rows(results, withheld, unit)
    types = ["all", *sorted({row["type"] for row in rows})]
    largest = max(row["size"] for row in rows)
    top = math.ceil(largest * 100) / 100
    select = alt.binding_select(options=types, name="Most bytes are of type ")
    slider = alt.binding_range(min=0, max=top, step=0.01, name=f"At most, {unit_name} ")
    params = (
        alt.param(name="type", value="all", bind=select),
        alt.param(name="room", value=largest, bind=slider),
    )
    base = alt.Chart(alt.NamedData("files")).transform_filter(
        "(type == 'all' || datum.type == type) && datum.size <= room + 0.005"
    )
    draw = _by_size if results.measure is None else _by_loss
    layers = draw(base, results, rows, unit_name)
    text = "Point at a file for its figures."
    if results.measure:
        text = f"Further down and further left is better. {text[:-1]}; choose a type or a size."
    return Chart(
        "files",
        "Size against quality",
        text,
        alt.layer(*layers).add_params(*params).properties(width=WIDTH, height=400),
        rows,
    )


def _rows(results: Results, withheld: Sequence[Unneeded], unit: int) -> list[dict[str, Any]]:
    """A row for each file: names, size, and the loss with its 95 % interval, in the units of the axes."""
    best = frontier.best(results)
    figures = {verdict.quant.name: verdict.figure for verdict in withheld}
    rows = []
    for quant in results.quants:
        kind = "withheld" if quant.name in figures else "best of its size" if quant.name in best else "other"
        note = figures[quant.name] if quant.name in figures else advice.note(quant, results)
        row: dict[str, Any] = {
            "file": quant.name,
            "size": round(quant.bytes / unit, 4),
            "bpw": round(quant.bpw, 3),
            "type": quant.type,
            "kind": kind,
            "note": note.replace("`", "").replace("*", ""),
        }
        if quant.loss:
            interval = {"loss": quant.loss.mean, "low": quant.loss.low, "high": quant.loss.high}
            row |= {name: float(f"{_in_axis(value, results):.6g}") for name, value in interval.items()}
        if speed := quant.measured["speed"]:
            row["generate"] = round(speed["generate"]["mean"], 2)
        rows.append(row)
    return rows


_TITLES: Final = {
    "kld": "KL divergence, nats",
    "perplexity": "change of perplexity, %",
    "embeddings": "distance of the embeddings",
}


def _in_axis(loss: float, results: Results) -> float:
    """A loss as the axis has it: a change of perplexity in percent, others as they are."""
    return 100 * math.expm1(loss) if results.measure == "perplexity" else loss


def _by_loss(base: alt.Chart, results: Results, rows: list[dict[str, Any]], unit: str) -> list[alt.Chart]:
    """Points with names, and a bar for the 95 % interval."""
    import altair as alt

    title = _TITLES[results.measure or "kld"]
    lows = [row["low"] for row in rows if "low" in row]
    scale = (
        alt.Scale(type="log")
        if results.measure != "perplexity" and lows and min(lows) > 0
        else alt.Scale(zero=False)
    )
    x = alt.X("size:Q", title=f"size, {unit}", scale=alt.Scale(zero=False, padding=15))
    y = alt.Y("loss:Q", title=title, scale=scale)
    shapes = alt.Scale(domain=[*_COLORS], range=_SHAPES)
    loss = [
        alt.Tooltip("loss:Q", title=title, format=".4g"),
        alt.Tooltip("low:Q", title="95 % from", format=".4g"),
        alt.Tooltip("high:Q", title="to", format=".4g"),
    ]
    base = base.encode(x=x)
    bars = base.mark_rule(strokeWidth=1.5)
    points = base.mark_point(filled=True, size=110, opacity=1)
    names = base.mark_text(dx=9, dy=-7, align="left", fontSize=10)
    return [
        bars.encode(y=alt.Y("low:Q", title=title), y2="high:Q", color=_color()),
        points.encode(
            y=y,
            color=_color(),
            shape=alt.Shape("kind:N", scale=shapes, title=None),
            tooltip=_tooltips(results, unit, loss),
        ),
        names.encode(y=y, text="file:N", color=_color()),
    ]


def _by_size(base: alt.Chart, results: Results, _: list[dict[str, Any]], unit: str) -> list[alt.Chart]:
    """A bar for each file's size."""
    import altair as alt

    x, y = alt.X("size:Q", title=f"size, {unit}"), alt.Y("file:N", sort="-x")
    return [base.mark_bar().encode(x=x, y=y, color=_color(), tooltip=_tooltips(results, unit, []))]


def _color() -> alt.Color:
    import altair as alt

    scale = alt.Scale(domain=[*_COLORS], range=[*_COLORS.values()])
    return alt.Color("kind:N", scale=scale, title=None, legend=alt.Legend(orient="top"))


def _tooltips(results: Results, unit: str, loss: list[alt.Tooltip]) -> list[alt.Tooltip]:
    import altair as alt

    speed = [alt.Tooltip("generate:Q", title="tokens a second")] if results.source["speed"] else []
    return [
        alt.Tooltip("file:N"),
        alt.Tooltip("size:Q", title=f"size, {unit}", format=".2f"),
        *loss,
        alt.Tooltip("bpw:Q", title="bits per weight"),
        alt.Tooltip("type:N", title="most bytes"),
        alt.Tooltip("note:N", title="in short"),
        *speed,
    ]
