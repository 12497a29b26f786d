"""The table of sensitivities, `sensitivity.tsv`: what each type costs each tensor.

A row is one quantizable tensor at one candidate type. `kld` is the KL divergence of
the model with that tensor alone at that type. A tensor and type whose probe
failed has no row.
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
class SensitivityRow:
    """One tensor at one type.

    `shape` has ne0 first; `bytes` are without padding. `error` is the
    imatrix-weighted squared error, relative to the tensor's weighted energy.
    `kld` is the mean KL divergence in nats. Both have a standard error. All are
    NaN where they are not known. Noise may make `kld` zero or negative. `how` is
    measured, predicted or imported. `estimate` is `kld` corrected by all that was
    measured of the model; NaN where there is no such estimate.
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
    def delta_kld(self) -> float:
        """What an allocation adds up, in nats: the estimate, or `kld` where there is none."""
        return self.kld if isnan(self.estimate) else self.estimate


def write_sensitivity(path: Path, rows: Iterable[SensitivityRow]) -> None:
    """Write `sensitivity.tsv`. Numbers have nine digits; an unknown value is an empty cell."""
    write_table(path, COLUMNS, [_cells(row) for row in rows])


def read_sensitivity(path: Path) -> list[SensitivityRow]:
    """The rows of `sensitivity.tsv`, in the file's order. QuantmillError for another kind of file."""
    try:
        return [
            SensitivityRow(
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
            f"no table of sensitivities ({error})", path, "delete it to have it made again"
        ) from None


def _cells(row: SensitivityRow) -> list[object]:
    shape = "x".join(map(str, row.shape))
    numbers = map(_number, (row.error, row.error_se, row.kld, row.se))
    return [
        row.name,
        row.role,
        row.layer,
        shape,
        row.type,
        row.bytes,
        *numbers,
        row.how,
        _number(row.estimate),
    ]


def _number(value: float) -> str:
    return "" if isnan(value) else f"{value:.9g}"
