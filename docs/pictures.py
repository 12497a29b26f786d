"""Draws the types that a plan gives to each role and layer: the pictures of docs/recipes.md.

    python docs/pictures.py docs/families results/real/*/plans/APEX-I-Quality.json ...

makes one SVG per plan: layers across, roles down. A tensor outside the layers fills
its row; neighbours of one type are one patch. The background is transparent, and
the colour of the text follows the page's light or dark theme.
"""

from __future__ import annotations

import json
import sys
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

# Bits per weight and their colour, mixed in between: viridis, which colour-blind people can read too.
SCALE = [
    (2.0, (68, 1, 84)),
    (3.5, (59, 82, 139)),
    (4.5, (33, 145, 140)),
    (6.5, (94, 201, 98)),
    (8.5, (253, 231, 37)),
]
OVER = (190, 190, 190)  # 16 bits and more: not quantized

# The order in which a token passes them.
ORDER = ("token_embd", "per_layer", "attn_", "ssm_", "ffn_gate", "ffn_up", "ffn_down", "nextn", "output")

LEFT, WIDE, HIGH, TOP = 132, 560, 17, 30
STYLE = """text{font:12px sans-serif;fill:#6e7781}.t{font-size:10px}.d{fill:#111}.l{fill:#fff}
@media(prefers-color-scheme:dark){text{fill:#9aa4ae}.d{fill:#111}.l{fill:#fff}}"""


def color(bits: float) -> tuple[int, int, int]:
    """The colour (red, green, blue) of so many bits per weight."""
    if bits >= 15:
        return OVER
    if bits <= SCALE[0][0]:
        return SCALE[0][1]
    for (low, dark), (high, bright) in pairwise(SCALE):
        if bits <= high:
            share = (bits - low) / (high - low)
            red, green, blue = (round(a + share * (b - a)) for a, b in zip(dark, bright, strict=True))
            return red, green, blue
    return SCALE[-1][1]


def rows(plan: dict[str, Any]) -> dict[str, list[tuple[float, str] | None]]:
    """Of each role what each layer has, bits and type, or None."""
    layers = 1 + max((cell["layer"] for cell in plan["bits"]), default=0)
    found: dict[str, list[tuple[float, str] | None]] = {}
    for cell in plan["bits"]:
        row = found.setdefault(cell["role"], [None] * layers)
        for layer in range(layers) if cell["layer"] < 0 else (cell["layer"],):
            row[layer] = (cell["bpw"], cell["type"])

    def place(role: str) -> tuple[int, str]:
        return next((n for n, start in enumerate(ORDER) if role.startswith(start)), len(ORDER)), role

    return {role: found[role] for role in sorted(found, key=place)}


def draw(plan: dict[str, Any]) -> str:
    """The picture of a plan (plans/<recipe>.json), an SVG."""
    table = rows(plan)
    layers = max(len(row) for row in table.values())
    step, height = WIDE / layers, TOP + HIGH * len(table) + 24
    size = f"{plan['file_bytes'] / 2**30:.2f} GiB"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDE + 8}" height="{height}" role="img">',
        f"<style>{STYLE}</style>",
        f'<text x="{LEFT}" y="18">{escape(plan["recipe"])}: {size}, {plan["bpw"]:.2f} bits per weight</text>',
    ]
    for number, (role, cells) in enumerate(table.items()):
        y, at = TOP + HIGH * number, 0
        parts.append(f'<text x="{LEFT - 6}" y="{y + 12}" text-anchor="end">{escape(role)}</text>')
        for cell, run in groupby(cells):
            width = len(list(run))
            if cell is not None:
                parts += patch(LEFT + at * step, y, width * step, *cell)
            at += width
    below = TOP + HIGH * len(table) + 14
    for layer in range(0, layers, max(1, round(layers / 8))):
        x = LEFT + (layer + 0.5) * step
        parts.append(f'<text class="t" x="{x:.1f}" y="{below}" text-anchor="middle">{layer}</text>')
    parts.append(f'<text class="t" x="{LEFT - 6}" y="{below}" text-anchor="end">layer</text></svg>')
    return "\n".join(parts) + "\n"


def patch(x: float, y: int, width: float, bits: float, kind: str) -> list[str]:
    """One run of layers, with its type's name where there is room."""
    red, green, blue = color(bits)
    place = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{HIGH - 1}"'
    made = [f'<rect {place} fill="#{red:02x}{green:02x}{blue:02x}"/>']
    if width > 7 * len(kind):
        ink = "d" if 0.3 * red + 0.59 * green + 0.11 * blue > 128 else "l"
        made.append(
            f'<text class="t {ink}" x="{x + width / 2:.1f}" y="{y + 12}" text-anchor="middle">{kind}</text>'
        )
    return made


def main(folder: Path, plans: list[Path]) -> None:
    """Draw each plan to `folder`/<recipe>.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in plans:
        plan = json.loads(path.read_text("utf-8"))
        (folder / f"{plan['recipe']}.svg").write_text(draw(plan), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
