"""The first picture of the card, sizes against quality; and how every picture looks.

SVG, the same bytes for the same results: text as paths of matplotlib's own
font, fixed ids, no date. Each is drawn twice, for light pages and for dark ones, on
a background of its own, so that it can be read on either. Sizes are chosen to be read at 400 px
of width. Colours are from Okabe and Ito's palette, which the colour-blind can
tell apart; what is best differs in its marker besides.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from quantmill.files import write_atomically
from quantmill.judge import frontier
from quantmill.judge.results import Results
from quantmill.text import GIB, MIB, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of a picture: of the page, of text and lines, of the best, of the source, of the rest."""

    name: str
    page: str
    ink: str
    grid: str
    best: str
    source: str
    rest: str

    @property
    def rc(self) -> Any:
        """The same as matplotlib's settings."""
        inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        paper = ("figure.facecolor", "axes.facecolor")
        return {**dict.fromkeys(inked, self.ink), **dict.fromkeys(paper, self.page)}


LIGHT: Final = Theme("light", "#ffffff", "#222222", "#e6e6e6", "#0072B2", "#D55E00", "#6e6e6e")
DARK: Final = Theme("dark", "#0d1117", "#e6edf3", "#2d333b", "#56B4E9", "#E69F00", "#9aa4ae")


def dark(picture: str) -> str:
    """The name of a picture's dark version: `size.svg` to `size-dark.svg`."""
    return picture.replace(".svg", "-dark.svg")


def save(draw: Callable[[Theme], Figure], path: Path) -> None:
    """Draw for both themes: to `path` (SVG), and the dark version beside it."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for theme, where in ((LIGHT, path), (DARK, path.with_name(dark(path.name)))):
        buffer = io.BytesIO()
        with matplotlib.rc_context({**theme.rc, "svg.hashsalt": "quantmill", "svg.fonttype": "path"}):
            FigureCanvasSVG(draw(theme)).print_svg(buffer, metadata={"Date": None, "Creator": None})
        write_atomically(where, buffer.getvalue())


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


def sizes(results: Results, path: Path) -> None:
    """Draw sizes against the first measure of quality that was taken, to `path` and its dark version."""
    by = {None: draw_sizes, "perplexity": draw_size_perplexity}.get(results.measure, draw_size_loss)
    save(lambda theme: by(results, theme), path)


def draw_sizes(results: Results, theme: Theme = LIGHT) -> Figure:
    """The figure of the sizes alone, a bar a file, where no quality was measured."""
    figure, axes, unit = _canvas(results, theme)
    names = [quant.name for quant in results.quants]
    places = range(len(names))
    axes.barh(places, [quant.bytes / unit for quant in results.quants], color=theme.best, height=0.7)
    axes.set_yticks(places, names, fontsize=10 if len(names) <= 12 else 8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_size_perplexity(results: Results, theme: Theme = LIGHT) -> Figure:
    """The figure of size against perplexity.

    Drawn is the change to the source, with the 95 % interval of the paired
    difference as a bar; the left axis reads it as perplexity. The error of the
    perplexity itself is mostly the text's, the same for all files, and would
    hide what differs. Past one percent the axis is logarithmic, so that one
    ruined file does not flatten the rest.
    """
    perplexity = results.source["perplexity"]
    assert perplexity is not None
    figure, axes, unit = _canvas(results, theme)
    best = frontier.best(results)
    points = [
        Point(quant.name, quant.bytes / unit, d.percent, *d.percent_interval, quant.name in best)
        for quant in results.quants
        if (d := quant.difference)
    ]
    axes.axhline(0, color=theme.source, linewidth=1.5, zorder=1)
    steps = _points(axes, points, theme)
    changes = [0.0, *(p.low for p in points), *(p.high for p in points)]
    _change_axes(axes, changes, perplexity["perplexity"])
    # far off to the right as a rule, but a source that was quantized before may be among its files
    axes.plot(
        results.facts["bytes"] / unit,
        0,
        "D",
        color=theme.source,
        markersize=7,
        markeredgecolor=theme.page,
        zorder=4,
    )
    axes.set_ylabel(f"perplexity on {perplexity['corpus']}", fontsize=11)
    _label(axes, theme, points, steps, f"source, {size(results.facts['bytes'])}")
    return figure


def draw_size_loss(results: Results, theme: Theme = LIGHT) -> Figure:
    """The figure of size against KL divergence, or the distance of embeddings, with its 95 % interval over
    the chunks.

    The axis is logarithmic: from the largest file to the smallest it grows a
    hundredfold and more. The source, at 0, is not on it: where files are no
    smaller than it, a line stands at its size, right of which it is better.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    source = results.source["kld"] or results.source["embeddings"]
    figure, axes, unit = _canvas(results, theme)
    best = frontier.best(results)
    points = [
        Point(quant.name, quant.bytes / unit, d.mean, d.low, d.high, quant.name in best)
        for quant in results.quants
        if (d := quant.loss) and d.low > 0
    ]
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    steps = _points(axes, points, theme)
    loss = "distance" if results.measure == "embeddings" else "KL divergence"
    on = source["corpus"] if source else "pictures and sounds"
    axes.set_ylabel(f"{loss} from the source on {on}", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if any(quant.bytes >= results.facts["bytes"] for quant in results.quants):
        _line_of_source(axes, theme, results.facts["bytes"] / unit, f"source, {size(results.facts['bytes'])}")
    _label(axes, theme, points, steps)
    return figure


def _line_of_source(axes: Axes, theme: Theme, at: float, name: str) -> None:
    """A line at a size, named above the frame, where no file's name can be."""
    left, right = axes.get_xlim()
    left = min(left, at - (right - at) / 20)
    axes.set_xlim(left, right)
    axes.axvline(at, color=theme.source, linewidth=1.2, linestyle="--", zorder=1)
    side = (
        "left" if at < left + (right - left) / 4 else "right" if at > right - (right - left) / 4 else "center"
    )
    above = axes.get_xaxis_transform()
    axes.text(at, 1.01, name, color=theme.source, fontsize=10, ha=side, va="bottom", transform=above)


def _canvas(results: Results, theme: Theme) -> tuple[Figure, Axes, int]:
    """A figure whose horizontal axis has sizes, and the bytes of their unit."""
    from matplotlib.figure import Figure

    unit, name = (GIB, "GiB") if results.quants[0].bytes >= GIB else (MIB, "MiB")
    figure = Figure(figsize=(6, 4.2 if len(results.quants) <= 12 else 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(f"size of the file, {name}", fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(True, color=theme.grid, linewidth=0.6)
    return figure, axes, unit


def _points(axes: Axes, points: list[Point], theme: Theme) -> list[tuple[float, float]]:
    """Draw the files and the steps of the frontier, which it returns."""
    steps = sorted((point.size, point.change) for point in points if point.best)
    if steps:
        axes.step(
            *zip(*steps, strict=True), where="post", color=theme.best, linewidth=1.2, alpha=0.6, zorder=2
        )
    for point in points:
        color, marker = (theme.best, "o") if point.best else (theme.rest, "X")
        axes.vlines(point.size, point.low, point.high, color=color, linewidth=1.5, zorder=3)
        axes.plot(
            point.size, point.change, marker, color=color, markersize=7, markeredgecolor=theme.page, zorder=4
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


def _label(
    axes: Axes, theme: Theme, points: list[Point], steps: list[tuple[float, float]], source: str | None = None
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
                    axes.plot(*zip(*ends, strict=True), color=theme.rest, linewidth=0.6, zorder=2)
                return True
        label.remove()
        return False

    for x, inward in ((frame.x1 - 4, -0.1), (frame.x0 + 4, 0.1)):
        if source is None or place(source, (x, level), [(inward, 4), (inward, -4)], theme.source):
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
        place(point.name, (at[0], at[1]), around, theme.ink if point.best else theme.rest)


def _sign(value: float) -> int:
    """-1, 0 or 1; what is hardly off centre counts as 0."""
    return 0 if abs(value) < 1e-6 else int(math.copysign(1, value))
