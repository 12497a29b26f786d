"""Heat maps by layer and role: the bits of each file, what each tensor is worth, what the imatrix saw.

Viridis and magma, which the colour-blind can tell apart. As a command,
`python -m quantmill.card.maps` draws the sensitivities, which no other result changes.
"""

from __future__ import annotations

import argparse
import math
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from quantmill import command
from quantmill.card import mix
from quantmill.card.plots import LIGHT, Theme, save
from quantmill.formats.sensitivity import SensitivityRow, read_sensitivity
from quantmill.judge import sensitivity
from quantmill.judge.quant import Quant
from quantmill.judge.results import Results
from quantmill.progress import Log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

_FULL_BITS = 8.5


def draw_sensitivity(rows: list[SensitivityRow], theme: Theme = LIGHT) -> Figure:
    """The heat map of sensitivities: layers across, roles down, on a logarithmic scale.

    A tensor outside the layers fills its row. Noise that came out at or below
    zero has the colour of the smallest value.
    """
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    shown = sensitivity.at_one_type(rows)
    cells = shown.cells if shown else {}
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
        axes.axhline(row, color=theme.page, linewidth=1)
    _layer_axes(axes, layers, roles)
    axes.set_xlabel("layer", fontsize=10)
    bar = figure.colorbar(colors, ax=axes, location="bottom", aspect=45, pad=0.02, fraction=0.06)
    label = f"sensitivity: the loss with that tensor alone at {shown.type}" if shown else ""
    bar.set_label(label, fontsize=10)
    bar.ax.tick_params(labelsize=9)
    return figure


def draw_bits(results: Results, theme: Theme = LIGHT) -> Figure:
    """The figure of bits per weight: layers across, roles down; tensors outside the layers fill their row."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    quants = mix.representative(results.quants)
    roles = mix.roles(results)
    columns = 1 if len(quants) < 3 else 2
    lines = math.ceil(len(quants) / columns)
    figure = Figure(figsize=(6.5, lines * (0.55 + 0.2 * len(roles)) + 0.9), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    bits = [min(value, _FULL_BITS) for quant in quants for value in mix.bits_by_role(quant).values()]
    low, high = min(bits, default=_FULL_BITS), max(bits, default=_FULL_BITS)
    colors = ScalarMappable(Normalize(min(low, high - 1), high, clip=True), matplotlib.colormaps["viridis"])
    for place, axes in enumerate(grid.flat):
        if place < len(quants):
            _panel(axes, quants[place], roles, colors, theme, enough=0.12 * columns)
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


def _panel(
    axes: Axes, quant: Quant, roles: list[str], colors: ScalarMappable, theme: Theme, enough: float
) -> None:
    """One file: neighbouring layers of one type are a patch, named where wider than `enough` of the panel."""
    from matplotlib.patches import Rectangle

    layers = max(1, 1 + max(tensor.layer for tensor in quant.tensors))
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
        axes.axhline(row, color=theme.page, linewidth=1)
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
    """(bits, type) by role and layer; a tensor outside the layers is in all of them."""
    return {
        (role, each): value
        for (role, layer), value in mix.cells(quant).items()
        for each in (range(layers) if layer < 0 else (layer,))
    }


def main(args: argparse.Namespace, log: Log) -> None:
    """Draw the sensitivities."""
    rows = read_sensitivity(args.sensitivity)
    save(lambda theme: draw_sensitivity(rows, theme), args.out)
    log.say(f"sensitivities drawn: {args.out}")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--sensitivity", type=Path, required=True, help="sensitivity.tsv")
    arguments.add_argument(
        "--out", type=Path, required=True, help="SVG to write; its dark version comes beside it"
    )
    command.run(arguments, main)
