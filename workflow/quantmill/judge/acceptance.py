"""Recipes that were fitted to a budget: what was predicted and what was measured, and whether they win.

A fitted file is recommended only where it beats, beyond doubt, the best of the
usual recipes' files within its budget, in pairs on the same held-out chunks. (Not
of its size: it may be a few bytes smaller than the preset whose size was asked for.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantmill.judge import compare
from quantmill.text import code, count, decimal_size, nats, size

if TYPE_CHECKING:
    from quantmill.judge.results import Quant


@dataclass(frozen=True)
class Fit:
    """One fitted file, the report of its allocation, the file that it must beat, and the difference to it."""

    quant: Quant
    report: dict[str, Any]
    rival: Quant | None
    difference: compare.Paired | None

    @property
    def rejected(self) -> bool:
        """Whether its gate is closed: there is a rival that it does not surely beat."""
        won = self.difference is not None and self.difference.verdict == compare.BETTER
        return bool(self.report["gate"]) and self.rival is not None and not won

    @property
    def verdict(self) -> str:
        """In a few words (markdown)."""
        if self.rival is None:
            return "no other file within its budget to compare with"
        name = code(self.rival.name)
        if self.difference is None:
            said = f"not measured against {name}"
        elif self.difference.verdict in (compare.BETTER, compare.WORSE):
            said = f"{self.difference.verdict} than {name}"
        else:
            said = f"{self.difference.verdict} from {name}"
            said = (
                f"too few chunks to compare with {name}" if self.difference.verdict == compare.FEW else said
            )
        return f"**not recommended:** {said}" if self.rejected else said

    @property
    def measured(self) -> compare.Paired | None:
        """The measured divergence from the source."""
        return self.quant.divergence

    @property
    def ratio(self) -> float | None:
        """The measured divergence over the predicted."""
        predicted = self.report["predicted_kld"]
        return self.measured.mean / predicted if self.measured and predicted and predicted > 0 else None

    @property
    def asked(self) -> str:
        """The budget as it was asked for."""
        budget = self.report["budget"]
        if "bpw" in budget:
            return f"{budget['bpw']:g} bpw"
        if "size" in budget:
            return f"{count(budget['size'])} bytes ({size(budget['size'])}, {decimal_size(budget['size'])})"
        memory = budget["memory"]
        return f"{size(memory['total'])} of memory, {count(memory['context'])} tokens of context"

    @property
    def spent(self) -> list[tuple[str, int]]:
        """How a memory is spent: what on, and bytes; empty for another budget."""
        room = self.report["memory"]
        if room is None:
            return []
        context = f"cache of {count(room['context'])} tokens, {room['cache']}"
        named = [(context, "kv"), ("recurrent states", "state"), ("computation, an estimate", "compute"),
                 ("left free for the rest", "reserve")]  # fmt: skip
        parts = [(words, int(room[part])) for words, part in named if room[part]]
        return [("the file", self.quant.bytes), *parts]

    @property
    def never_taken(self) -> str:
        """The types that no budget would take for a role, by role (markdown)."""
        roles: dict[str, list[str]] = {}
        for one in self.report["dominated"]:
            if one["tensors"] == one["of"]:
                roles.setdefault(one["role"], []).append(one["type"])
        return "; ".join(f"{code(role)}: {', '.join(types)}" for role, types in roles.items())


def fitted(quants: Sequence[Quant]) -> list[Fit]:
    """The fitted ones of the quants, each beside the best usual one within its budget.

    The best is the one of the least loss; where nothing was measured, the largest.
    """
    usual = [quant for quant in quants if quant.fit is None]
    return [_fit(quant, usual) for quant in quants if quant.fit is not None]


def _fit(quant: Quant, usual: Sequence[Quant]) -> Fit:
    assert quant.fit is not None
    within = [other for other in usual if other.bytes <= quant.fit["budget"]["bytes"]]
    told = [other for other in within if other.loss is not None]
    rival = min(told, key=lambda other: other.loss.mean if other.loss else 0.0, default=None)
    rival = rival or (within[0] if within else None)
    difference = quant.against(rival) if rival and rival.loss and quant.loss else None
    return Fit(quant, quant.fit, rival, difference)


@dataclass(frozen=True)
class Sensitivity:
    """What each tensor is worth, at one type: `cells` holds the divergence (nats) by role and layer.

    Tensors that cannot have the type are left out; several of one role and layer are added up.
    """

    type: str
    cells: dict[tuple[str, int], float]
    tensors: int
    of: int
    how: dict[str, int]

    @property
    def finding(self) -> str:
        """What the heat map shows, for those who cannot see it (plain text)."""
        most = sorted(self.cells.items(), key=lambda cell: -cell[1])[:3]
        named = [
            f"{role}{f' of layer {layer}' if layer >= 0 else ''} ({nats(value)})"
            for (role, layer), value in most
        ]
        return f"KL divergence with one tensor alone at {self.type}; the most at {', '.join(named)}."


def sensitivity(rows: Sequence[dict[str, str]]) -> Sensitivity | None:
    """The sensitivities at the type that most tensors can have, of several the smallest; None without any.

    `rows` are those of sensitivity.tsv.
    """
    told = [row for row in rows if row["kld"] not in ("", "nan")]
    if not told:
        return None
    counted = Counter(row["type"] for row in told)
    bits: dict[str, float] = {}
    for row in told:
        elements = 1
        for extent in row["shape"].split("x"):
            elements *= int(extent)
        bits.setdefault(row["type"], 8 * int(row["bytes"]) / elements)
    kind = min(counted, key=lambda name: (-counted[name], bits[name], name))
    cells: dict[tuple[str, int], float] = {}
    chosen = [row for row in told if row["type"] == kind]
    for row in chosen:
        key = (row["role"], int(row["layer"]))
        cells[key] = cells.get(key, 0.0) + float(row["kld"])
    tensors = {row["name"] for row in rows}
    return Sensitivity(kind, cells, len(chosen), len(tensors), dict(Counter(row["how"] for row in chosen)))
