"""Which tensors of a source a recipe with `keep: grid` leaves as they are, and as which type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header
from quantmill.formats.manifest import read_grids
from quantmill.formats.plan import PlanRow
from quantmill.formats.types import TYPES, is_quantized, writable


@dataclass(frozen=True)
class Kept:
    """The type of each tensor that stays without loss, and the grid of each for which the engine has none."""

    types: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What a plan says of the tensors that cannot be kept."""
        return [
            f"{count} tensors lie on the grid of {kind}, which no type of the engine has:"
            " they are rounded as the recipe says"
            for kind, count in sorted(Counter(self.without.values()).items())
        ]

    def marked(self, rows: Iterable[PlanRow]) -> tuple[PlanRow, ...]:
        """The rows, those that are kept with that among their reasons."""
        return tuple(
            replace(row, reason=f"{row.reason}; its grid, kept")
            if self.types.get(row.name) == row.type
            else row
            for row in rows
        )

    def counted(self, rows: Iterable[PlanRow]) -> dict[str, int]:
        """How many tensors of a plan are kept, by type."""
        return dict(sorted(Counter(row.type for row in rows if self.types.get(row.name) == row.type).items()))


def kept(header: Header, manifest: Path | None, engine: str, where: object) -> Kept:
    """What can be kept of a source: quantized tensors, and those of `manifest` that lie on a grid.

    Without a manifest nothing is kept. QuantmillError where there is no such tensor, or no type for any.
    """
    if manifest is None:
        return Kept()
    grids = {t.name: t.type for t in header.tensors if len(t.shape) > 1 and is_quantized(t.type)}
    grids |= read_grids(manifest)
    if not grids:
        cure = "leave `keep` out, or delete manifest.tsv where an earlier version made it"
        raise QuantmillError(
            "keep: grid, and no tensor of the source lies on the grid of a type", where, cure
        )
    types = {name: kind for name, kind in grids.items() if kind in TYPES and kind in writable(engine)}
    if not types:
        names = ", ".join(sorted(set(grids.values())))
        what = f"keep: grid, and the source lies on the grid of {names}, which no type of engine {engine} has"
        raise QuantmillError(what, where, "leave `keep` out; of all types q8_0 is the nearest")
    return Kept(types, {name: kind for name, kind in grids.items() if name not in types})
