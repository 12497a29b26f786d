"""The table of a plan, `plans/<recipe>.tsv`: the tensors of the file to be written, in its order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from quantmill.errors import QuantmillError
from quantmill.files import read_table, write_table

MADE: Final = "made"
"""The source type of a tensor that the source does not have."""

COLUMNS: Final = ["name", "role", "layer", "shape", "source_type", "type", "bytes", "reason"]


@dataclass(frozen=True)
class PlanRow:
    """One tensor of the file to be written; `bytes` without padding, `reason` why it has its type.

    `source_type` is `MADE` for a per-tensor scale (`NAME.scale`) that is made with its nvfp4 weight.
    """

    name: str
    role: str
    layer: int
    shape: tuple[int, ...]
    source_type: str
    type: str
    bytes: int
    reason: str

    @property
    def made(self) -> bool:
        """Whether it is a per-tensor scale, which the source does not have."""
        return self.source_type == MADE

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return prod(self.shape)


def with_scale(rows: Iterable[PlanRow]) -> list[str]:
    """The nvfp4 weights that get a per-tensor scale."""
    return [scaled_by(row.name) for row in rows if row.made]


def scaled_by(scale: str) -> str:
    """`blk.0.ffn_up.weight` of `blk.0.ffn_up.scale`."""
    return f"{scale.removesuffix('.scale')}.weight"


def write_plan(path: Path, rows: Iterable[PlanRow]) -> None:
    """Write `plans/<recipe>.tsv`."""
    write_table(path, COLUMNS, [_cells(row) for row in rows])


def read_plan(path: Path) -> list[PlanRow]:
    """The rows of a plan, in the order of the file to be written. QuantmillError for another kind of file."""
    try:
        return [
            PlanRow(
                name=row["name"],
                role=row["role"],
                layer=int(row["layer"]),
                shape=tuple(map(int, row["shape"].split("x"))),
                source_type=row["source_type"],
                type=row["type"],
                bytes=int(row["bytes"]),
                reason=row["reason"],
            )
            for row in read_table(path)
        ]
    except (KeyError, ValueError) as error:
        raise QuantmillError(
            f"no table of a plan ({error})", path, "delete it to have it made again"
        ) from None


def _cells(row: PlanRow) -> list[object]:
    shape = "x".join(map(str, row.shape))
    return [row.name, row.role, row.layer, shape, row.source_type, row.type, row.bytes, row.reason]
