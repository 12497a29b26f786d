"""The table of damages, `sensitivity.tsv`: what each type costs each tensor, which an allocation weighs.

A row is a choice: one quantizable tensor at one type of the pool. `kld` is the
damage of that tensor alone at that type, the rest of the model untouched; a
choice that is not to be had (its probe failed) has no row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Final

from quantmill.errors import QuantmillError
from quantmill.files import read_table, write_table

COLUMNS: Final = [
    "name",
    "role",
    "layer",
    "shape",
    "type",
    "bytes",
    "error",
    "error_se",
    "kld",
    "se",
    "how",
    "estimate",
]


@dataclass(frozen=True)
class Damage:
    """One tensor at one type.

    `shape` has ne0 first; `bytes` are without padding. `error` is the
    imatrix-weighted squared error relative to the tensor's weighted energy,
    `kld` the mean KL divergence in nats, either with its standard error, NaN
    where it is not known. Noise may make `kld` zero or negative. `estimate` is
    what it is drawn to by all that was measured of the model, NaN where nothing.
    """

    name: str
    role: str
    layer: int
    shape: tuple[int, ...]
    type: str
    bytes: int
    error: float = nan
    error_se: float = nan
    kld: float = nan
    se: float = nan
    how: str = "measured"
    estimate: float = nan

    @property
    def damage(self) -> float:
        """What an allocation adds up: the estimate, or the `kld` as it is where there is none."""
        return self.kld if isnan(self.estimate) else self.estimate


def write_damages(path: Path, damages: Iterable[Damage]) -> None:
    """Write `sensitivity.tsv`; numbers to nine digits, an empty cell for what is not known."""
    write_table(path, COLUMNS, [
        [d.name, d.role, d.layer, "x".join(map(str, d.shape)), d.type, d.bytes,
         *map(_cell, (d.error, d.error_se, d.kld, d.se)), d.how, _cell(d.estimate)]
        for d in damages
    ])  # fmt: skip


def read_damages(path: Path) -> list[Damage]:
    """The rows of `sensitivity.tsv`, in the file's order. QuantmillError where it is none."""
    try:
        return [
            Damage(
                name=row["name"],
                role=row["role"],
                layer=int(row["layer"]),
                shape=tuple(map(int, row["shape"].split("x"))),
                type=row["type"],
                bytes=int(row["bytes"]),
                error=float(row["error"] or nan),
                error_se=float(row["error_se"] or nan),
                kld=float(row["kld"] or nan),
                se=float(row["se"] or nan),
                how=row["how"],
                estimate=float(row["estimate"] or nan),
            )
            for row in read_table(path)
        ]
    except (KeyError, ValueError) as error:
        raise QuantmillError(
            f"no table of damages ({error})", path, "delete it to have it made again"
        ) from None


def _cell(value: float) -> str:
    return "" if value != value else f"{value:.9g}"
