"""The card's interactive page, one file without a network: what the pictures show, to point at and to filter.

Vega-Lite's charts through altair, their JavaScript from vl-convert, both put
into the page itself. The marks are SVG, so that they scale, print and are read
by whatever reads the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from quantmill.card import tables
from quantmill.judge import advice, frontier
from quantmill.judge.frontier import Verdict
from quantmill.judge.results import Results
from quantmill.text import GIB, MIB

if TYPE_CHECKING:
    import altair as alt

_WIDTH = 640
_PALETTE = {"best of its size": "#0072B2", "other": "#8a8a8a", "withheld": "#D55E00"}


def render(results: Results, withheld: Sequence[Verdict], title: str) -> str:
    """The page as HTML; what is withheld is drawn as such."""
    import vl_convert

    made = (
        ("files", "Size against quality", files(results, withheld)),
        ("bits", "Bits per weight by layer and role", bits(results)),
        ("sensitivity", "What each tensor is worth", sensitivity(results)),
        ("importance", "What the importance matrix saw", importance(results)),
        ("texts", "What the texts are made of", texts(results)),
    )
    charts = [(name, heading, *chart) for name, heading, chart in made if chart is not None]
    specs = {name: _with(chart, rows) for name, _, _, chart, rows in charts}
    sections = "\n".join(
        f'<section><h2>{escape(heading)}</h2><p>{escape(words)}</p><div id="{name}"></div></section>'
        for name, heading, words, _, _ in charts
    )
    script = _PAGE_SCRIPT.replace("SPECS", json.dumps(specs, sort_keys=True).replace("</", "<\\/"))
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    return _PAGE.format(
        title=escape(title), style=_STYLE, sections=sections, bundle=bundle, script=script
    )  # fmt: skip


Made = tuple[str, Any, list[dict[str, Any]]]
"""A sentence about the chart, the chart (altair's), its rows."""


def files(results: Results, withheld: Sequence[Verdict]) -> Made:
    """The frontier: each file's size and loss, with a choice of the type and of the largest size."""
    import altair as alt

    best = frontier.best(results)
    unit, unit_name = (GIB, "GiB") if results.quants[0].bytes >= GIB else (MIB, "MiB")
    condemned = {verdict.quant.name: verdict for verdict in withheld}
    by_kld = results.measure == "kld"
    rows = []
    for quant in results.quants:
        kind = (
            "withheld" if quant.name in condemned else "best of its size" if quant.name in best else "other"
        )
        note = condemned[quant.name].figure if quant.name in condemned else advice.note(quant, results)
        row: dict[str, Any] = {
            "file": quant.name, "size": round(quant.bytes / unit, 4), "bpw": round(quant.bpw, 3),
            "type": quant.type, "kind": kind, "note": note.replace("`", "").replace("*", ""),
        }  # fmt: skip
        if quant.loss:
            value = (lambda x: x) if by_kld else (lambda x: 100 * math.expm1(x))
            interval = {"loss": quant.loss.mean, "low": quant.loss.low, "high": quant.loss.high}
            row |= {name: float(f"{value(at):.6g}") for name, at in interval.items()}
        if quant.speed:
            row["generate"] = round(quant.speed["generate"]["mean"], 2)
        rows.append(row)
    loss = "KL divergence, nats" if by_kld else "change of perplexity, %"
    tooltip = [
        alt.Tooltip("file:N"), alt.Tooltip("size:Q", title=f"size, {unit_name}", format=".2f"),
        alt.Tooltip("bpw:Q", title="bits per weight"), alt.Tooltip("type:N", title="most bytes"),
        alt.Tooltip("note:N", title="in short"),
    ]  # fmt: skip
    if results.measure:
        tooltip[2:2] = [
            alt.Tooltip("loss:Q", title=loss, format=".4g"),
            alt.Tooltip("low:Q", title="95 % from", format=".4g"),
            alt.Tooltip("high:Q", title="to", format=".4g"),
        ]
    if results.speed:
        tooltip.append(alt.Tooltip("generate:Q", title="tokens a second"))
    types = sorted({row["type"] for row in rows})
    most = max(row["size"] for row in rows)
    chosen = alt.param(
        name="type",
        value="all",
        bind=alt.binding_select(options=["all", *types], name="Most bytes are of type "),
    )
    room = alt.param(
        name="room",
        value=most,
        bind=alt.binding_range(
            min=0, max=math.ceil(most * 100) / 100, step=0.01, name=f"At most, {unit_name} "
        ),
    )
    numbers = [row["low"] for row in rows if "low" in row]
    scale = alt.Scale(type="log") if by_kld and numbers and min(numbers) > 0 else alt.Scale(zero=False)
    x = alt.X("size:Q", title=f"size, {unit_name}", scale=alt.Scale(zero=False, padding=15))
    base = (
        alt.Chart(alt.NamedData("files"))
        .transform_filter("(type == 'all' || datum.type == type) && datum.size <= room + 0.005")
        .encode(x=x)
    )
    color = alt.Color(
        "kind:N", scale=alt.Scale(domain=[*_PALETTE], range=[*_PALETTE.values()]), title=None,
        legend=alt.Legend(orient="top"),
    )  # fmt: skip
    shape = alt.Shape(
        "kind:N", scale=alt.Scale(domain=[*_PALETTE], range=["circle", "diamond", "cross"]), title=None
    )
    if results.measure is None:
        x = alt.X("size:Q", title=f"size, {unit_name}")
        marks = base.mark_bar().encode(x=x, y=alt.Y("file:N", sort="-x"), color=color, tooltip=tooltip)
        layered = alt.layer(marks)
    else:
        y = alt.Y("loss:Q", title=loss, scale=scale)
        bars = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", title=loss), y2="high:Q", color=color)
        marks = base.mark_point(filled=True, size=110, opacity=1).encode(
            y=y, color=color, shape=shape, tooltip=tooltip
        )
        named = base.mark_text(dx=9, dy=-7, align="left", fontSize=10).encode(y=y, text="file:N", color=color)
        layered = alt.layer(bars, marks, named)
    words = (
        "Further down and further left is better. Point at a file for its figures; choose a type or a size."
    )
    return (
        words if results.measure else "Point at a file for its figures.",
        layered.add_params(chosen, room).properties(width=_WIDTH, height=400),
        rows,
    )


def bits(results: Results) -> Made:
    """Bits per weight of a file that is chosen, by layer and role."""
    import altair as alt

    rows: list[dict[str, Any]] = [
        {"file": quant.name, "role": role, "layer": layer, "bits": round(value, 3), "type": type_}
        for quant in results.quants
        for (role, layer), (value, type_) in tables.cells(quant).items()
    ]
    shown = [row["bits"] for row in rows]
    names = [quant.name for quant in results.quants]
    file = alt.param(name="file", value=names[0], bind=alt.binding_select(options=names, name="File "))
    scale = alt.Scale(scheme="viridis", domain=[min(shown), max(shown)])
    chart = _heat(
        alt.NamedData("bits"), "bits", "bits per weight", scale,
        tables.roles(results),
        [alt.Tooltip("type:N")],
    )  # fmt: skip
    words = "Layer -1 is what stands outside the layers. Point at a cell for its type; choose a file."
    return words, chart.transform_filter("datum.file == file").add_params(file), rows


def sensitivity(results: Results) -> Made | None:
    """The KL divergence with one tensor alone at a type that is chosen."""
    import altair as alt

    found: dict[tuple[str, str, int], float] = {}
    how: dict[tuple[str, str, int], str] = {}
    for row in results.sensitivities:
        if row["kld"] not in ("", "nan"):
            key = (row["type"], row["role"], int(row["layer"]))
            found[key] = found.get(key, 0.0) + float(row["kld"])
            how[key] = row["how"]
    if not found:
        return None
    least = min((value for value in found.values() if value > 0), default=1e-9)
    rows = [
        {"kind": kind, "role": role, "layer": layer, "kld": float(f"{max(value, least):.4g}"),
         "how": how[kind, role, layer]}
        for (kind, role, layer), value in found.items()
    ]  # fmt: skip
    kinds = list(dict.fromkeys(kind for kind, _, _ in found))
    kind = alt.param(name="kind", value=kinds[0], bind=alt.binding_select(options=kinds, name="Type "))
    chart = _heat(
        alt.NamedData("sensitivity"), "kld", "KL divergence, nats", alt.Scale(scheme="magma", type="log"),
        list(dict.fromkeys(role for _, role, _ in found)), [alt.Tooltip("how:N")],
    )  # fmt: skip
    words = "The KL divergence of the model with that tensor alone at the type that is chosen."
    return words, chart.transform_filter("datum.kind == kind").add_params(kind), rows


def importance(results: Results) -> Made | None:
    """What the importance matrix saw: the mean square of each tensor's inputs."""
    import altair as alt

    entries = [e for e in (results.imatrix or {}).get("entries", []) if e.get("mean", 0) > 0]
    if not entries:
        return None
    rows = [
        {"role": entry["role"], "layer": entry["layer"], "mean": float(f"{entry['mean']:.4g}")}
        for entry in entries
    ]
    chart = _heat(
        alt.NamedData("importance"), "mean", "mean of the squared inputs",
        alt.Scale(scheme="cividis", type="log"), list(dict.fromkeys(row["role"] for row in rows)), [],
    )  # fmt: skip
    return "The mean square of what each matrix is multiplied with, on the calibration text.", chart, rows


def texts(results: Results) -> Made | None:
    """What each corpus is made of: the shares of its sources."""
    import altair as alt

    rows = [
        {"corpus": name, "source": one["name"], "file": one["file"], "rows": one["rows_used"],
         "tokens": one["tokens"], "share": round(100 * one["share_got"], 2)}
        for name, corpus in results.corpora.items() for one in corpus["sources"]
    ]  # fmt: skip
    if not rows:
        return None
    chart = (
        alt.Chart(alt.NamedData("texts"))
        .mark_bar()
        .encode(
            x=alt.X("share:Q", title="% of the tokens", scale=alt.Scale(domain=[0, 100])),
            y=alt.Y("corpus:N", title=None),
            color=alt.Color(
                "source:N", title=None, scale=alt.Scale(scheme="viridis"), legend=alt.Legend(orient="top")
            ),
            tooltip=[
                alt.Tooltip("source:N"),
                alt.Tooltip("file:N"),
                alt.Tooltip("share:Q", title="% of the tokens"),
                alt.Tooltip("tokens:Q", format=","),
                alt.Tooltip("rows:Q", format=","),
            ],
        )
        .properties(width=_WIDTH, height=alt.Step(28))
    )
    return (
        "The shares of each source, in tokens, of the texts that were calibrated and measured on.",
        chart,
        rows,
    )


def _heat(
    data: alt.NamedData, value: str, title: str, scale: alt.Scale, roles: list[str], more: list[alt.Tooltip]
) -> alt.Chart:
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
                *more,
            ],
        )
        .properties(width=_WIDTH, height=alt.Step(18))
    )


def _with(chart: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The chart's specification, checked by altair, with its rows."""
    spec: dict[str, Any] = chart.to_dict()
    names = {spec["data"]["name"]} if "data" in spec else {part["data"]["name"] for part in spec["layer"]}
    return spec | {"datasets": dict.fromkeys(names, rows)}


_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #222; --soft: #555; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --ink: #e6edf3; --soft: #9aa4ae; } }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
p { color: var(--soft); }
section > div { overflow-x: auto; width: 100%; }
.vega-bind { margin: .3rem 0; }
.vega-bind-name { margin-right: .5rem; }
"""

_PAGE_SCRIPT = """
const specs = SPECS;
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {
  for (const [name, spec] of Object.entries(specs)) {
    vegaEmbed("#" + name, spec, {
      renderer: "svg", actions: false, theme: dark.matches ? "dark" : undefined,
      config: {background: "transparent"},
    }).then(() => document.getElementById(name).setAttribute("data-drawn", "yes"));
  }
}
draw();
dark.addEventListener("change", draw);
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{sections}
<script type="module">{bundle}
{script}</script>
</body>
</html>
"""
