"""Size-targeted files: what was predicted, what was measured, and whether they pass the acceptance test.

A size-targeted file passes where it is significantly (95 %) better than its
baseline: the best file of the other recipes within its budget, paired on the
same held-out chunks. The baseline is chosen by the budget and not by the file's
size, which may be a few bytes smaller than the preset whose size was requested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantmill.formats.allocation import Allocation
from quantmill.formats.measurements import Rate
from quantmill.judge import compare
from quantmill.judge.quant import Quant
from quantmill.text import code, count, decimal_size, size


@dataclass(frozen=True)
class SizeTargeted:
    """A size-targeted file, the report of its allocation, its baseline, and the difference to it."""

    quant: Quant
    report: Allocation
    baseline: Quant | None
    difference: compare.Paired | None

    @property
    def rejected(self) -> bool:
        """Whether it failed the acceptance test: it has a baseline, and is not significantly better."""
        better = self.difference is not None and self.difference.verdict == compare.BETTER
        return self.quant.acceptance_test and self.baseline is not None and not better

    @property
    def verdict(self) -> str:
        """The result of the comparison in a few words (markdown)."""
        if self.baseline is None:
            return "no other file within its budget to compare with"
        name = code(self.baseline.name)
        if self.difference is None:
            words = f"not measured against {name}"
        elif self.difference.verdict == compare.FEW:
            words = f"too few chunks to compare with {name}"
        elif self.difference.verdict == compare.SAME:
            words = f"{self.difference.verdict} from {name}"
        else:
            words = f"significantly {self.difference.verdict} than {name}"
        return f"**not recommended: failed the acceptance test** ({words})" if self.rejected else words

    @property
    def measured(self) -> compare.Paired | None:
        """The measured divergence from the source, or the distance of its embeddings."""
        return self.quant.divergence or self.quant.distance

    @property
    def generated(self) -> Rate | None:
        """The measured speed at which it generates text."""
        speed = self.quant.measured["speed"]
        return speed["generate"] if speed else None

    @property
    def ratio(self) -> float | None:
        """The measured divergence over the predicted one."""
        predicted = self.report["predicted_kld"]
        return self.measured.mean / predicted if self.measured and predicted and predicted > 0 else None

    @property
    def budget(self) -> str:
        """The budget as the config gives it."""
        budget = self.report["budget"]
        if "bpw" in budget:
            return f"{budget['bpw']:g} bpw"
        if "size" in budget:
            return f"{count(budget['size'])} bytes ({size(budget['size'])}, {decimal_size(budget['size'])})"
        if "pools" in budget:
            pools = budget["pools"]
            both = f"{size(pools['gpu'])} of GPU and {size(pools['cpu'])} of CPU memory"
            return f"{both}, {count(pools['context'])} tokens of context"
        memory = budget["memory"]
        return f"{size(memory['total'])} of memory, {count(memory['context'])} tokens of context"

    @property
    def memory_use(self) -> list[tuple[str, int]]:
        """What a memory budget is used for, and bytes; empty for another budget."""
        memory = self.report["memory"]
        if memory is None:
            return []
        parts = {
            f"cache of {count(memory['context'])} tokens, {memory['cache']}": memory["kv"],
            "recurrent states": memory["state"],
            "computation, an estimate": memory["compute"],
            "left free for the rest": memory["reserve"],
        }
        used = [(part, int(bytes_)) for part, bytes_ in parts.items() if bytes_]
        return [("the file", self.quant.bytes), *used]

    @property
    def never_chosen(self) -> str:
        """The types that no budget would choose for a role, by role (markdown)."""
        roles: dict[str, list[str]] = {}
        for entry in self.report["dominated"]:
            if entry["tensors"] == entry["of"]:
                roles.setdefault(entry["role"], []).append(entry["type"])
        return "; ".join(f"{code(role)}: {', '.join(types)}" for role, types in roles.items())


def size_targeted(quants: Sequence[Quant]) -> list[SizeTargeted]:
    """The size-targeted files, each with its baseline: the best other file within its budget.

    The best is the one with the smallest loss; where none was measured, the largest.
    """
    others = [quant for quant in quants if quant.allocation is None]
    return [_compared(quant, quant.allocation, others) for quant in quants if quant.allocation is not None]


def _compared(quant: Quant, report: Allocation, others: Sequence[Quant]) -> SizeTargeted:
    within = [other for other in others if other.bytes <= report["budget"]["bytes"]]
    measured = [other for other in within if other.loss is not None]
    baseline = min(measured, key=lambda other: other.loss.mean if other.loss else 0.0, default=None)
    baseline = baseline or (within[0] if within else None)
    difference = quant.against(baseline) if baseline and baseline.loss and quant.loss else None
    return SizeTargeted(quant, report, baseline, difference)
