"""The pictures of the card: size against quality, bits and sensitivities by layer and role.

SVG, the same bytes for the same results: text as paths of matplotlib's own
font, fixed ids, no date. Sizes are chosen to be read at 400 px of width.
Colours are from Okabe and Ito's palette, viridis and magma, which the
colour-blind can tell apart. As a command, `python -m quantmill.card.plots` draws
the sensitivities, which no other result changes.
"""

from __future__ import annotations

import argparse
import io
import math
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from quantmill import command
from quantmill.card import advice, fits, tables
from quantmill.card.results import Quant, Results
from quantmill.card.text import GIB, MIB, size
from quantmill.files import read_table, write_atomically
from quantmill.progress import Log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY, _BLACK = "#0072B2", "#D55E00", "#6e6e6e", "#222222"
_FULL_BITS = 8.5
_LOG_FROM_PERCENT = 5.0
"""Largest change of perplexity up to which a linear axis shows all."""


class Point(NamedTuple):
    """A file in the picture: its size and its loss in the units of the axes, the loss's 95 % interval."""

    name: str
    size: float
    change: float
    low: float
    high: float
    best: bool


def size_kld(results: Results, path: Path) -> None:
    """Draw KL divergence against file size, and the frontier, to `path` (SVG)."""
    _save(draw_size_kld(results), path)


def size_perplexity(results: Results, path: Path) -> None:
    """Draw perplexity against file size, the frontier and the source, to `path` (SVG)."""
    _save(draw_size_perplexity(results), path)


def bits(results: Results, path: Path) -> None:
    """Draw bits per weight by layer and role, a panel a file, to `path` (SVG)."""
    _save(draw_bits(results), path)


def draw_sensitivity(rows: list[dict[str, str]]) -> Figure:
    """The heat map of sensitivities: layers across, roles down, on a logarithmic scale.

    What stands outside the layers fills its row. Noise that came out at or
    below zero has the colour of the least.
    """
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    found = fits.sensitivity(rows)
    cells = found.cells if found else {}
    roles = list(dict.fromkeys(role for role, _ in cells))
    layers = max(1, 1 + max((layer for _, layer in cells), default=0))
    above = [value for value in cells.values() if value > 0] or [1.0]
    least = min(*above, max(above) / 10)
    colors = ScalarMappable(LogNorm(least, max(above)), matplotlib.colormaps["magma"])
    figure = Figure(figsize=(6.5, 0.25 * len(roles) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    for (role, layer), value in cells.items():
        start, width = (layer, 1) if layer >= 0 else (0, layers)
        shade = colors.to_rgba(max(value, least))  # type: ignore[arg-type]
        axes.add_patch(Rectangle((start, roles.index(role)), width, 1, facecolor=shade, edgecolor="none"))
    for row in range(len(roles)):
        axes.axhline(row, color="white", linewidth=1)
    _layer_axes(axes, layers, roles)
    axes.set_xlabel("layer", fontsize=10)
    bar = figure.colorbar(colors, ax=axes, location="bottom", aspect=45, pad=0.02, fraction=0.06)
    bar.set_label(f"KL divergence with that tensor alone at {found.type}, nats" if found else "", fontsize=10)
    bar.ax.tick_params(labelsize=9)
    return figure


def draw_size_perplexity(results: Results) -> Figure:
    """The figure of size against perplexity.

    Drawn is the change to the source, with the 95 % interval of the paired
    difference as a bar; the left axis reads it as perplexity. The error of the
    perplexity itself is mostly the text's, the same for all files, and would
    hide what differs. Past one percent the axis is logarithmic, so that one
    ruined file does not flatten the rest.
    """
    assert results.perplexity is not None
    figure, axes, unit = _canvas(results)
    best = advice.frontier(results)
    points = [
        Point(quant.name, quant.bytes / unit, d.percent, *d.percent_interval, quant.name in best)
        for quant in results.quants
        if (d := quant.difference)
    ]
    axes.axhline(0, color=_ORANGE, linewidth=1.5, zorder=1)
    steps = _points(axes, points)
    changes = [0.0, *(p.low for p in points), *(p.high for p in points)]
    _change_axes(axes, changes, results.perplexity["perplexity"])
    # far off to the right as a rule, but a source that was quantized before may be among its files
    axes.plot(
        results.facts["bytes"] / unit, 0, "D", color=_ORANGE, markersize=7, markeredgecolor="white", zorder=4
    )
    axes.set_ylabel(f"perplexity on {results.perplexity['corpus']}", fontsize=11)
    _label(axes, points, steps, f"source, {size(results.facts['bytes'])}")
    return figure


def draw_size_kld(results: Results) -> Figure:
    """The figure of size against KL divergence, with its 95 % interval over the chunks.

    The axis is logarithmic: from the largest file to the smallest it grows a
    hundredfold and more. The source, at 0, is not on it.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    assert results.kld is not None
    figure, axes, unit = _canvas(results)
    best = advice.frontier(results)
    points = [
        Point(quant.name, quant.bytes / unit, d.mean, d.low, d.high, quant.name in best)
        for quant in results.quants
        if (d := quant.divergence) and d.low > 0
    ]
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    steps = _points(axes, points)
    axes.set_ylabel(f"KL divergence from the source on {results.kld['corpus']}", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    _label(axes, points, steps)
    return figure


def _canvas(results: Results) -> tuple[Figure, Axes, int]:
    """A figure whose horizontal axis has sizes, and the bytes of their unit."""
    from matplotlib.figure import Figure

    unit, name = (GIB, "GiB") if results.quants[0].bytes >= GIB else (MIB, "MiB")
    figure = Figure(figsize=(6, 4.2 if len(results.quants) <= 12 else 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(f"size of the file, {name}", fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    return figure, axes, unit


def _points(axes: Axes, points: list[Point]) -> list[tuple[float, float]]:
    """Draw the files and the steps of the frontier, which it returns."""
    steps = sorted((point.size, point.change) for point in points if point.best)
    if steps:
        axes.step(*zip(*steps, strict=True), where="post", color=_BLUE, linewidth=1.2, alpha=0.6, zorder=2)
    for point in points:
        color, marker = (_BLUE, "o") if point.best else (_GREY, "X")
        axes.vlines(point.size, point.low, point.high, color=color, linewidth=1.5, zorder=3)
        axes.plot(
            point.size, point.change, marker, color=color, markersize=7, markeredgecolor="white", zorder=4
        )
    sizes = [point.size for point in points]
    if sizes:
        room = 0.1 * (max(sizes) - min(sizes)) or 0.2 * max(sizes)
        axes.set_xlim(min(sizes) - room, max(sizes) + room)
    return steps


def _change_axes(axes: Axes, changes: list[float], source: float) -> None:
    """Scale the vertical axis to changes in percent; its ticks say perplexity left and percent right."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator

    lowest, highest = min(changes), max(changes)
    log = max(-lowest, highest) > _LOG_FROM_PERCENT
    if log:
        axes.set_yscale("symlog", linthresh=1.0, linscale=1.0)
        past = [digit * 10**power for power in range(8) for digit in (1, 2, 5)]
        ticks = [-tick for tick in reversed(past)] + [-0.5, 0, 0.5, *past]
    else:
        ticks = list(MaxNLocator(6).tick_values(lowest, highest))
    into = axes.yaxis.get_transform().transform
    bottom, top = (float(into(change)) for change in (lowest, highest))
    pad = max(0.12 * (top - bottom), 0.01)
    bottom, top = (
        float(axes.yaxis.get_transform().inverted().transform(y)) for y in (bottom - pad, top + pad)
    )
    ticks = [tick for tick in ticks if bottom <= tick <= top]
    ticks = [tick for tick in ticks if tick == 0 or len(ticks) <= 12 or abs(tick) >= 1]
    right = axes.twinx()
    right.set_yscale(axes.get_yscale(), **({"linthresh": 1.0, "linscale": 1.0} if log else {}))
    for axis, labels in (
        (axes.yaxis, [f"{source * (1 + tick / 100):.4g}" for tick in ticks]),
        (right.yaxis, [f"{tick:+.3g}" if tick else "0" for tick in ticks]),
    ):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FixedFormatter(labels))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    for side in (axes, right):
        side.set_ylim(bottom, top)
        side.spines[["top", "right"]].set_visible(False)
    right.set_ylabel("change to the source, %", fontsize=11)
    right.tick_params(labelsize=10)


def draw_bits(results: Results) -> Figure:
    """The figure of bits per weight: layers across, roles down; tensors outside the layers fill their row."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    quants = tables.telling(results.quants)
    roles = tables.roles(results)
    columns = 1 if len(quants) < 3 else 2
    lines = math.ceil(len(quants) / columns)
    figure = Figure(figsize=(6.5, lines * (0.55 + 0.2 * len(roles)) + 0.9), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    found = [min(value, _FULL_BITS) for quant in quants for value in tables.bits_by_role(quant).values()]
    low, high = min(found, default=_FULL_BITS), max(found, default=_FULL_BITS)
    colors = ScalarMappable(Normalize(min(low, high - 1), high, clip=True), matplotlib.colormaps["viridis"])
    for place, axes in enumerate(grid.flat):
        if place < len(quants):
            _panel(axes, quants[place], roles, colors, enough=0.12 * columns)
        else:
            axes.set_visible(False)
        if place < len(quants) <= place + columns:
            axes.set_xlabel("layer", fontsize=10)
            axes.tick_params(labelbottom=True)
    bar = figure.colorbar(
        colors, ax=grid, location="bottom", aspect=45, pad=0.02, extend="max", fraction=0.03
    )
    bar.set_label("bits per weight", fontsize=10)
    bar.ax.tick_params(labelsize=9)
    return figure


def _panel(axes: Axes, quant: Quant, roles: list[str], colors: ScalarMappable, enough: float) -> None:
    """One file: runs of layers of one type are one patch, named where wider than `enough` of the panel."""
    from matplotlib.patches import Rectangle

    layers = max(1, 1 + max(tensor["layer"] for tensor in quant.tensors))
    cells = _cells(quant, layers)
    for row, role in enumerate(roles):
        start = 0
        for cell, run in groupby(cells.get((role, layer)) for layer in range(layers)):
            width = len(list(run))
            if cell is not None:
                bits_, type_ = cell
                shade = colors.to_rgba(bits_)  # type: ignore[arg-type]
                axes.add_patch(Rectangle((start, row), width, 1, facecolor=shade, edgecolor="none"))
                if width >= enough * layers:
                    bright = 0.3 * shade[0] + 0.59 * shade[1] + 0.11 * shade[2] > 0.5
                    ink = "black" if bright else "white"
                    middle = (start + width / 2, row + 0.52)
                    axes.text(*middle, type_, ha="center", va="center", fontsize=8, color=ink)
            start += width
        axes.axhline(row, color="white", linewidth=1)
    _layer_axes(axes, layers, roles)
    axes.set_title(f"{quant.name}, {quant.bpw:.2f} bpw", fontsize=10, loc="left")


def _layer_axes(axes: Axes, layers: int, roles: list[str]) -> None:
    """Layers across, roles down."""
    axes.set_xlim(0, layers)
    axes.set_ylim(len(roles), 0)
    axes.set_yticks([row + 0.5 for row in range(len(roles))], roles)
    step = max(1, math.ceil(layers / 6))
    axes.set_xticks(
        [layer + 0.5 for layer in range(0, layers, step)], [str(n) for n in range(0, layers, step)]
    )
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)


def _cells(quant: Quant, layers: int) -> dict[tuple[str, int], tuple[float, str]]:
    """(bits, type) by role and layer; what stands outside the layers is in all of them."""
    cells = {}
    for tensor in tables.weights(quant):
        value = (8 * tensor["bytes"] / tensor["parameters"], tensor["type"])
        for layer in range(layers) if tensor["layer"] < 0 else (tensor["layer"],):
            cells[tensor["role"], layer] = value
    return cells


def _label(
    axes: Axes, points: list[Point], steps: list[tuple[float, float]], source: str | None = None
) -> None:
    """Name the points, and the source where it is drawn at 0, near them.

    No name lies on another, a point or a line. Those of the frontier come first;
    each takes the nearest free place around its point, with a thin line to it
    where that is not beside it. A name that finds none is left out; the table
    has it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    canvas = FigureCanvasAgg(axes.figure)  # type: ignore[arg-type]
    canvas.draw()  # lays the axes out, so that data can be turned into pixels
    renderer: Any = canvas.get_renderer()
    point_size = axes.figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    data = axes.transData

    def line(start: tuple[float, float], end: tuple[float, float]) -> Bbox:
        return Bbox(data.transform([start, end])).padded(1.5)

    taken = [line((point.size, point.low), (point.size, point.high)) for point in points]
    taken += [
        Bbox([at, at]).padded(4 * point_size) for at in data.transform([(p.size, p.change) for p in points])
    ]
    for (x, y), (next_x, next_y) in pairwise(steps):
        taken += [line((x, y), (next_x, y)), line((next_x, y), (next_x, next_y))]
    level = data.transform((0, 0))[1] if source else 0.0
    if source:
        taken.append(Bbox.from_extents(frame.x0, level - 1, frame.x1, level + 1))

    def place(text: str, at: tuple[float, float], offsets: list[tuple[float, float]], color: str) -> bool:
        label = axes.text(0, 0, text, fontsize=10, color=color, transform=None, zorder=5)
        box = label.get_window_extent(renderer)
        for dx, dy in offsets:
            # the nearer edge or corner of the text stands at the offset
            left = at[0] + dx - box.width * (0.5 - 0.5 * _sign(dx))
            low = at[1] + dy - box.height * (0.5 - 0.5 * _sign(dy))
            spot = Bbox.from_bounds(left, low, box.width, box.height).padded(1.5)
            inside = (
                frame.x0 <= spot.x0 and spot.x1 <= frame.x1 and frame.y0 <= spot.y0 and spot.y1 <= frame.y1
            )
            if inside and not any(spot.overlaps(other) for other in taken):
                taken.append(spot)
                label.set_transform(data)
                label.set_position(tuple(data.inverted().transform((left - box.x0, low - box.y0))))
                if math.hypot(dx, dy) > 16 * point_size:
                    ends = data.inverted().transform([at, (at[0] + dx, at[1] + dy)])
                    axes.plot(*zip(*ends, strict=True), color=_GREY, linewidth=0.6, zorder=2)
                return True
        label.remove()
        return False

    for x, inward in ((frame.x1 - 4, -0.1), (frame.x0 + 4, 0.1)):
        if source is None or place(source, (x, level), [(inward, 4), (inward, -4)], _ORANGE):
            break
    around = [
        (
            radius * point_size * math.cos(math.radians(angle)),
            radius * point_size * math.sin(math.radians(angle)),
        )
        for radius in (8, 13, 20, 28, 38, 50, 64, 80)
        for angle in (0, 45, 90, 135, 180, 315, 270, 225, 22, 68, 112, 158, 202, 248, 292, 338)
    ]
    for point in sorted(points, key=lambda point: not point.best):
        at = data.transform((point.size, point.change))
        place(point.name, (at[0], at[1]), around, _BLACK if point.best else _GREY)


def _sign(value: float) -> int:
    """-1, 0 or 1; what is hardly off centre counts as 0."""
    return 0 if abs(value) < 1e-6 else int(math.copysign(1, value))


def _save(figure: Figure, path: Path) -> None:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "quantmill", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    write_atomically(path, buffer.getvalue())


def main(args: argparse.Namespace, log: Log) -> None:
    """Draw the sensitivities."""
    _save(draw_sensitivity(read_table(args.damages)), args.out)
    log.say(f"sensitivities drawn: {args.out}")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--damages", type=Path, required=True, help="sensitivity.tsv")
    arguments.add_argument("--out", type=Path, required=True, help="SVG to write")
    command.run(arguments, main)
