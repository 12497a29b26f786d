"""What each tensor is worth, at the one type that most tensors can have: for the card's heat map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, prod

from quantmill.formats.sensitivity import SensitivityRow
from quantmill.text import nats


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivities at one type: `cells` holds the KL divergence (nats), or distance, by role and layer.

    Tensors that cannot have the type are left out; several of one role and
    layer are added up. `tensors` of `of` have the type; `how` counts how their
    sensitivities came about.
    """

    type: str
    cells: dict[tuple[str, int], float]
    tensors: int
    of: int
    how: dict[str, int]
    loss: str

    @property
    def description(self) -> str:
        """What the heat map shows, for those who cannot see it (plain text)."""
        largest = sorted(self.cells.items(), key=lambda cell: -cell[1])[:3]
        names = [
            f"{role}{f' of layer {layer}' if layer >= 0 else ''} ({nats(value)})"
            for (role, layer), value in largest
        ]
        loss = f"{self.loss[0].upper()}{self.loss[1:]}"
        return f"{loss} with one tensor alone at {self.type}; the most at {', '.join(names)}."


def at_one_type(rows: Sequence[SensitivityRow], loss: str = "KL divergence") -> Sensitivity | None:
    """The sensitivities at the type that most tensors can have, of several the smallest; None without any.

    `rows` are those of sensitivity.tsv, `loss` what they are measured in.
    """
    known = [row for row in rows if not isnan(row.kld)]
    if not known:
        return None
    tensors_of_type = Counter(row.type for row in known)
    bits: dict[str, float] = {}
    for row in known:
        bits.setdefault(row.type, 8 * row.bytes / prod(row.shape))
    kind = min(tensors_of_type, key=lambda name: (-tensors_of_type[name], bits[name], name))
    cells: dict[tuple[str, int], float] = {}
    chosen = [row for row in known if row.type == kind]
    for row in chosen:
        key = (row.role, row.layer)
        cells[key] = cells.get(key, 0.0) + row.kld
    tensors = {row.name for row in rows}
    return Sensitivity(kind, cells, len(chosen), len(tensors), dict(Counter(row.how for row in chosen)), loss)
