"""A recipe fitted to a budget: the types that do the least damage in so many bytes.

The damages of `sensitivity.tsv` are taken to add up; the choice is then a
multiple-choice knapsack, solved to the optimum. The file's metadata and the
padding of tensors count, so that the file is never a byte above the budget.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantmill import command
from quantmill.budget import feasibility, knapsack, merge
from quantmill.budget.candidates import Choice, Group, Settings
from quantmill.budget.feasibility import in_words
from quantmill.files import write_json, write_text
from quantmill.formats.ggufio import Header
from quantmill.formats.plan import PlanRow
from quantmill.formats.sensitivity import Damage, read_damages
from quantmill.formats.types import fallback, tensor_bytes
from quantmill.model.header import read_source
from quantmill.progress import Log
from quantmill.recipe import presets, rules


@dataclass(frozen=True)
class Allocation:
    """The types of all groups; `bytes` are theirs and `fixed`, those of whatever was not to be chosen."""

    groups: tuple[Group, ...]
    choices: tuple[Choice, ...]
    fixed: int
    solution: knapsack.Solution

    @property
    def bytes(self) -> int:
        """Bytes of the whole file."""
        return self.fixed + self.solution.size

    @property
    def types(self) -> dict[str, str]:
        """The type of every tensor that was chosen for."""
        pairs = zip(self.groups, self.choices, strict=True)
        return {
            tensor.name: kind
            for group, choice in pairs
            for tensor, kind in zip(group.tensors, choice.types, strict=True)
        }


def allocate(
    found: Sequence[Group], fixed: int, budget: int, where: str, room: Mapping[str, Any] | None = None
) -> Allocation:
    """The allocation of least damage whose file, `fixed` bytes and the groups, is no larger than `budget`.

    QuantmillError, with the least and the most that can be reached, for a
    budget below the least, and for one above the most but where it is what a
    memory leaves (`room`).
    """
    feasibility.check(found, fixed, budget, where, room)
    solution = knapsack.solve(
        [[choice.bytes for choice in group.choices] for group in found],
        [[choice.damage for choice in group.choices] for group in found],
        budget - fixed,
    )
    chosen = tuple(group.choices[pick] for group, pick in zip(found, solution.picks, strict=True))
    return Allocation(tuple(found), chosen, fixed, solution)


def recipe_of(
    types: Mapping[str, str],
    rows: Sequence[PlanRow],
    pinned: Sequence[rules.Rule],
    wanted: Settings,
    imatrix: str,
) -> rules.Recipe:
    """The recipe that gives `rows`, all that is ever quantized, their `types`.

    Its base is the type of the most bytes; without rules where that is all.
    """
    total: Counter[str] = Counter()
    for row in rows:
        total[types[row.name]] += tensor_bytes(types[row.name], row.shape)
    kind = min(total, key=lambda t: (-total[t], t))
    base = presets.of_type(kind, wanted.engine)
    scales = "nvfp4" not in types.values()  # the damages are of nvfp4 alone, and so are the sizes
    if all(types[row.name] == fallback(kind, row.shape[0], wanted.engine) for row in rows):
        return rules.Recipe(wanted.engine, base, imatrix, (), scales=scales)
    free = [row for row in rows if not any(rule.matches(row.name) for rule in pinned)]
    return rules.Recipe(wanted.engine, base, imatrix, tuple(merge.merged(free, types, pinned)), scales=scales)


def dominated(found: Iterable[Group]) -> list[dict[str, Any]]:
    """The choices that no budget wants, by role and type: no smaller than one that does no more damage."""
    lost: Counter[tuple[str, str]] = Counter()
    offered: Counter[tuple[str, str]] = Counter()
    for group in found:
        kept = knapsack.undominated([c.bytes for c in group.choices], [c.damage for c in group.choices])
        for number, choice in enumerate(group.choices):
            for tensor, kind in zip(group.tensors, choice.types, strict=True):
                offered[tensor.role, kind] += 1
                lost[tensor.role, kind] += number not in kept
    return [
        {"role": role, "type": kind, "tensors": count, "of": offered[role, kind]}
        for (role, kind), count in sorted(lost.items())
        if count
    ]


def fit(
    header: Header, damages: Sequence[Damage], config: Mapping[str, Any]
) -> tuple[rules.Recipe, dict[str, Any]]:
    """The recipe of a budget and its report, for a model; `config` as the spec of the stage has it."""
    task = feasibility.problem(header, damages, config)
    allocation = allocate(task.groups, task.fixed, task.budget, f"recipe {config['recipe']}", task.room)
    types = {**allocation.types, **task.pinned}
    figures = _figures(allocation, task.pinned, damages, task.wanted, task.budget)
    figures["warnings"] += task.warnings
    otherwise = config["use_imatrix"] == "none" and config["imatrix"] is not None
    if otherwise and any(row.how != "imported" for row in damages):
        figures["warnings"].append(
            "the damages are of quantizing with the importance matrix, which this recipe does without:"
            " it will diverge more than was predicted"
        )
    recipe = recipe_of(types, task.able, task.pins.rules, task.wanted, config["use_imatrix"])
    return recipe, {
        "recipe": config["recipe"],
        "budget": {**config["budget"], "bytes": task.budget},
        "memory": task.room,
        "metadata_bytes": task.metadata,
        "bpw": allocation.bytes * 8 / task.parameters,
        "pinned": sorted(task.pinned),
        "rules": merge.as_lines({row.name: types[row.name] for row in task.able}),
        "refit": None,  # a second round, no longer made; goes with the next version of the file
        **figures,
    }


def _figures(
    allocation: Allocation,
    pinned: Mapping[str, str],
    damages: Iterable[Damage],
    wanted: Settings,
    budget: int,
) -> dict[str, Any]:
    """What the report says of the allocation and of its prediction, the sum of the damages."""
    solution = allocation.solution
    known = {(row.name, row.type): row for row in damages}
    held = [known[item] for item in pinned.items() if item in known]
    rows = [*(row for choice in allocation.choices for row in choice.rows), *held]
    kld = math.fsum(row.damage for row in rows)
    errors = [row.se for row in rows if not math.isnan(row.se)]
    held_damage = math.fsum(row.damage if wanted.damage == "kld" else row.error for row in held)
    pool = {choice.type for group in allocation.groups for choice in group.choices}
    least, most = feasibility.reach(allocation.groups, allocation.fixed)
    return {
        "file_bytes": allocation.bytes,
        "least_bytes": least,
        "most_bytes": most,
        "damage": wanted.damage,
        "predicted_kld": None if math.isnan(kld) else kld,
        "predicted_se": math.hypot(*errors) if errors and not math.isnan(kld) else None,
        "how": dict(sorted(Counter(row.how for row in rows).items())),
        "objective": solution.damage + held_damage,
        "bound": solution.bound + held_damage,
        "gap": solution.gap,
        "solver": knapsack.solver_name(),
        "nodes": solution.nodes,
        "engine": wanted.engine,
        "types": sorted(pool),
        "groups": len(allocation.groups),
        "choices": sum(len(group.choices) for group in allocation.groups),
        "harmonized": [
            list(roles)
            for roles in wanted.harmonize
            if any(len(g.tensors) > 1 and g.tensors[0].role in roles for g in allocation.groups)
        ],
        "dominated": dominated(allocation.groups),
        "warnings": _warnings(
            allocation, [name for name in pinned if (name, pinned[name]) not in known], budget
        ),
    }


def _warnings(allocation: Allocation, unknown: Sequence[str], budget: int) -> list[str]:
    said = []
    if unknown:
        names = ", ".join(sorted(unknown)[:3]) + (", ..." if len(unknown) > 3 else "")
        said.append(
            f"no damage is known of {len(unknown)} pinned tensors ({names}): the prediction is without"
        )
    if allocation.solution.gap > 1e-6:
        said.append(f"the optimum is not proven: it may be up to {allocation.solution.gap:.2g} better")
    pairs = list(zip(allocation.groups, allocation.choices, strict=True))
    if allocation.bytes < budget and all(
        chosen.damage == min(choice.damage for choice in group.choices) for group, chosen in pairs
    ):
        if any(choice.bytes > chosen.bytes for group, chosen in pairs for choice in group.choices):
            said.append(
                f"{in_words(allocation.bytes)} is all that the budget's {in_words(budget)} are good for:"
                " larger types would do more damage"
            )
        else:
            said.append(
                f"{in_words(allocation.bytes)} is the most that the pool can fill of {in_words(budget)}"
            )
    return said


def main(args: argparse.Namespace, log: Log) -> None:
    """Allocate one recipe for one model."""
    start = time.monotonic()
    config = args.spec["config"]
    recipe, report = fit(read_source(args.model), read_damages(args.damages), config)
    write_text(args.out, rules.dump(recipe))
    write_json(args.report, report)
    reached, asked = in_words(report["file_bytes"]), in_words(report["budget"]["bytes"])
    log.say(
        f"recipe {report['recipe']}: {reached} of {asked}, {report['damage']} {report['objective']:.4g},"
        f" gap {report['gap']:.1g}, {len(recipe.rules)} rules, {time.monotonic() - start:.1f} s"
    )
    log.warn(report["warnings"])


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--damages", type=Path, required=True, help="sensitivity.tsv")
    arguments.add_argument("--out", type=Path, required=True, help="the recipe, as plain YAML")
    arguments.add_argument("--report", type=Path, required=True, help="the allocation in numbers, JSON")
    command.run(arguments, main)
