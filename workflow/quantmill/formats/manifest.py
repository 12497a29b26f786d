"""manifest.tsv: the source's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from quantmill.errors import QuantmillError
from quantmill.files import read_table, write_table

COLUMNS: Final = ["name", "role", "layer", "ne0", "ne1", "ne2", "ne3", "type", "bytes", "sha256"]
GRID: Final = "grid"
"""One more column, where any tensor's values lie on the grid of a type: its name, or empty."""

_NONE: Final[Mapping[str, str]] = {}


class ManifestRow(NamedTuple):
    """One tensor: `shape` has ne0 first (as read, four extents), `sha256` is of its data alone."""

    name: str
    role: str
    layer: int
    shape: tuple[int, ...]
    type: str
    bytes: int
    sha256: str


def write_manifest(path: Path, rows: Iterable[ManifestRow], grids: Mapping[str, str] = _NONE) -> None:
    """Write the table, in the order of the rows; `grids` by tensor."""
    write_table(
        path,
        [*COLUMNS, *([GRID] if grids else [])],
        [
            [
                *(row.name, row.role, row.layer, *(*row.shape, 1, 1, 1, 1)[:4]),
                *(row.type, row.bytes, row.sha256),
                *([grids.get(row.name, "")] if grids else []),
            ]
            for row in rows
        ],
    )


def read_grids(path: Path) -> dict[str, str]:
    """The grid on which a tensor's values lie, by its name; tensors of quantized types are not there."""
    return {row["name"]: row[GRID] for row in read_table(path) if row.get(GRID)}


def read_manifest_rows(path: Path) -> list[ManifestRow]:
    """Read the table. QuantmillError where it is missing or is no manifest."""
    table = read_table(path)
    try:
        return [
            ManifestRow(
                row["name"],
                row["role"],
                int(row["layer"]),
                tuple(int(row[f"ne{i}"]) for i in range(4)),
                row["type"],
                int(row["bytes"]),
                row["sha256"],
            )
            for row in table
        ]
    except (KeyError, ValueError):
        raise QuantmillError("is no manifest", path, "delete it to have it made again") from None
