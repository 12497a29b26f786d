"""A second round: damages corrected by what whole files were measured to diverge.

Of every file, with D the damages of `sensitivity.tsv` at its types,

    divergence = floor + sum over roles of factor * D of the role's tensors

The factors say where damages do not add up (a role's tensors may make up for
each other, or not); the floor, never negative, is what a file diverges by
whatever its types: a file rounds its activations to 8 bits, which no probe does.
Fitted by least squares of the relative misses, each factor drawn to 1. The
divergences are of the tuning corpus, so that held-out text stays unseen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantmill.errors import QuantmillError
from quantmill.files import read_json
from quantmill.model.types import is_quantized
from quantmill.recipe.damage import Damage
from quantmill.recipe.table import read_plan

_MISS: Final = 0.05  # what a file is off by at right factors, relative: seen on the tiny models
_SPREAD: Final = 0.3  # of the factors about 1, as a standard deviation
_CHUNKS: Final = 8  # at least, to learn from: 12 did no harm where 3 did (docs/quality.md)
_LEAST: Final = 0.2  # of a factor: no damage becomes a gain


@dataclass(frozen=True)
class File:
    """A file that was measured: the type of each of its tensors, its mean divergence in nats, on how much."""

    name: str
    types: Mapping[str, str]
    kld: float
    chunks: int = 12


@dataclass(frozen=True)
class Refit:
    """What was fitted, and for each file in order what it said before and says now [files], nats."""

    floor: float
    factors: dict[str, float]
    files: Sequence[File]
    before: NDArray[np.float64]
    after: NDArray[np.float64]

    def corrected(self, damages: Sequence[Damage]) -> list[Damage]:
        """The damages with the factor of their role; errors of quantizing stay as they are."""
        return [
            replace(row, kld=row.kld * factor, se=row.se * factor, estimate=row.estimate * factor)
            for row in damages
            for factor in [self.factors[row.role]]
        ]

    @property
    def warnings(self) -> list[str]:
        """Where there are few chunks: files and probes share what is odd about them."""
        chunks = min(file.chunks for file in self.files)
        if chunks >= _CHUNKS:
            return []
        return [f"a second round by {chunks} chunks does harm more often than good: take {_CHUNKS} or more"]

    def report(self) -> dict[str, Any]:
        """For `recipes/<recipe>.json`."""
        columns = zip(self.files, self.before.tolist(), self.after.tolist(), strict=True)
        return {
            "floor": self.floor,
            "factors": self.factors,
            "files": [
                {"recipe": file.name, "measured": file.kld, "first": first, "now": now}
                for file, first, now in columns
            ],
        }


def read_file(name: str, plan: Path, kld: Path) -> File:
    """A file from its plan and what was measured of it."""
    types = {row.name: row.type for row in read_plan(plan)}
    measured = read_json(kld)
    return File(name, types, float(measured["kld"]["mean"]), int(measured["chunks"]))


def refit(damages: Sequence[Damage], files: Sequence[File], where: str) -> Refit:
    """Floor and factors from the files.

    QuantmillError for a file that does not diverge, or of whose types no damage is known.
    """
    from scipy.optimize import lsq_linear

    for file in files:
        if not file.kld > 0:
            raise QuantmillError(f"{file.name} does not diverge from the source", f"{where}.refit",
                                 "refit by recipes that quantize")  # fmt: skip

    roles = sorted({row.role for row in damages})
    parts = np.array([_by_role(damages, file, roles, where) for file in files])
    measured = np.array([file.kld for file in files])
    weight = 1 / (_MISS * measured)
    rows = np.column_stack([np.ones(len(files)), parts]) * weight[:, None]
    prior = np.eye(len(roles) + 1)[1:] / _SPREAD
    least = np.array([0.0] + [_LEAST] * len(roles))
    found = lsq_linear(
        np.vstack([rows, prior]), np.r_[measured * weight, np.ones(len(roles)) / _SPREAD],
        (least, np.inf), method="bvls",
    ).x  # fmt: skip
    factors = dict(zip(roles, found[1:].tolist(), strict=True))
    return Refit(float(found[0]), factors, files, parts.sum(axis=1), found[0] + parts @ found[1:])


def _by_role(damages: Sequence[Damage], file: File, roles: Sequence[str], where: str) -> list[float]:
    """The damages of a file's tensors, summed by role."""
    known = {(row.name, row.type): row.damage for row in damages}
    total = dict.fromkeys(roles, 0.0)
    for name, role in {row.name: row.role for row in damages}.items():
        kind = file.types[name]
        if not is_quantized(kind):
            continue
        if (name, kind) not in known:
            raise QuantmillError(
                f"no damage is known of {name} at {kind}, which {file.name} has", f"{where}.refit",
                "refit by other recipes, or add the type to sensitivity.types",
            )  # fmt: skip
        total[role] += known[name, kind]
    return [total[role] for role in roles]
