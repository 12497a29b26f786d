"""A size-targeted recipe: the types with the least total sensitivity within a budget.

The sensitivities of `sensitivity.tsv` are assumed to add up. The choice is then
a multiple-choice knapsack, solved to the optimum. The file's metadata and the
padding of tensors count, so that the file never exceeds the budget.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantmill import command
from quantmill.budget import feasibility, knapsack, merge, pools
from quantmill.budget.candidates import Choice, Group, Settings
from quantmill.budget.feasibility import Problem, exact
from quantmill.files import write_text
from quantmill.formats import allocation as formats
from quantmill.formats.ggufio import Header
from quantmill.formats.plan import PlanRow
from quantmill.formats.sensitivity import SensitivityRow, read_sensitivity
from quantmill.formats.settings import Allocate
from quantmill.formats.types import fallback, tensor_bytes
from quantmill.model.header import read_source
from quantmill.progress import Log
from quantmill.recipe import presets, rules


@dataclass(frozen=True)
class Allocation:
    """The choices of all groups. The solution's size is theirs; `fixed` are the bytes of all the rest."""

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
        """The type of every tensor of the groups."""
        pairs = zip(self.groups, self.choices, strict=True)
        return {
            tensor.name: kind
            for group, choice in pairs
            for tensor, kind in zip(group.tensors, choice.types, strict=True)
        }


def allocate(
    groups: Sequence[Group],
    fixed: int,
    budget: int,
    where: str,
    room: formats.MemoryRoom | None = None,
    limits: Sequence[knapsack.Limit] = (),
) -> Allocation:
    """The allocation of least cost whose file, `fixed` bytes and the groups, is no larger than `budget`,
    within all `limits`.

    QuantmillError, with the range of sizes, for a budget outside it, as `feasibility.check` says.
    """
    feasibility.check(groups, fixed, budget, where, room)
    solution = knapsack.solve(
        [[choice.bytes for choice in group.choices] for group in groups],
        [[choice.cost for choice in group.choices] for group in groups],
        budget - fixed,
        limits,
    )
    return chosen(groups, fixed, solution)


def chosen(groups: Sequence[Group], fixed: int, solution: knapsack.Solution) -> Allocation:
    """The choices of a solution."""
    choices = tuple(group.choices[pick] for group, pick in zip(groups, solution.picks, strict=True))
    return Allocation(tuple(groups), choices, fixed, solution)


def recipe_of(
    types: Mapping[str, str],
    rows: Sequence[PlanRow],
    pinned: Sequence[rules.Rule],
    settings: Settings,
    imatrix: str,
) -> rules.Recipe:
    """The recipe that gives `rows`, which are all quantizable tensors, their `types`.

    Its base is the type of the most bytes. It has no rules where all tensors have that type.
    """
    total: Counter[str] = Counter()
    for row in rows:
        total[types[row.name]] += tensor_bytes(types[row.name], row.shape)
    kind = min(total, key=lambda t: (-total[t], t))
    base = presets.of_type(kind, settings.engine)
    # nvfp4 was measured without per-tensor scales, and so are the sizes.
    scales = "nvfp4" not in types.values()
    if all(types[row.name] == fallback(kind, row.shape[0], settings.engine) for row in rows):
        return rules.Recipe(settings.engine, base, imatrix, (), scales=scales)
    free = [row for row in rows if not any(rule.matches(row.name) for rule in pinned)]
    merged = tuple(merge.merged(free, types, pinned))
    return rules.Recipe(settings.engine, base, imatrix, merged, scales=scales)


def dominated(
    groups: Sequence[Group], times: Sequence[Sequence[int]] | None = None
) -> list[formats.Dominated]:
    """The choices that no budget takes, by role and type: another is no larger and costs no more (and, where
    `times` are given, is no slower).
    """
    lost: Counter[tuple[str, str]] = Counter()
    offered: Counter[tuple[str, str]] = Counter()
    for number, group in enumerate(groups):
        own = [times[number]] if times is not None else []
        useful = knapsack.undominated([c.bytes for c in group.choices], [c.cost for c in group.choices], *own)
        for pick, choice in enumerate(group.choices):
            for tensor, kind in zip(group.tensors, choice.types, strict=True):
                offered[tensor.role, kind] += 1
                lost[tensor.role, kind] += pick not in useful
    return [
        {"role": role, "type": kind, "tensors": count, "of": offered[role, kind]}
        for (role, kind), count in sorted(lost.items())
        if count
    ]


def size_targeted(
    header: Header,
    table: Sequence[SensitivityRow],
    spec: Allocate,
    grids: Path | None = None,
    speeds: Path | None = None,
) -> tuple[rules.Recipe, formats.Allocation]:
    """The recipe of a budget and its report, for a model; `spec` as the stage's spec has it, `grids` the
    manifest whose grids are kept, `speeds` the measured speeds where the recipe has a floor.
    """
    task = feasibility.problem(header, table, spec, grids, speeds)
    fastest, on_cpu = task.check() if task.floor else 0.0, 0
    if task.pools is None:
        limits = [knapsack.Limit(task.floor.times(task.groups), task.floor.left())] if task.floor else []
        allocation = allocate(task.groups, task.fixed, task.budget, task.where, task.memory, limits)
    else:
        on_cpu, solution = pools.solve(task.groups, task.pools, task.where, task.floor)
        allocation = chosen(task.groups, task.fixed, solution)
    types = {**allocation.types, **task.pinned}
    report = _report(allocation, task, table, spec)
    layers = frozenset(task.pools.layers[:on_cpu]) if task.pools else frozenset()
    if task.pools is not None:
        report["pools"] = pools.report(task.groups, allocation.choices, task.pools, on_cpu)
    if task.floor is not None:
        times = task.floor.times(task.groups, layers)
        taken = sum(row[pick] for row, pick in zip(times, allocation.solution.picks, strict=True))
        report["pace"] = task.floor.report(task.floor.rate(taken, task.floor.left(layers)), fastest)
    recipe = recipe_of(types, task.quantizable, task.pins.rules, task.settings, spec["use_imatrix"])
    return recipe, report


def _report(
    allocation: Allocation, task: Problem, table: Sequence[SensitivityRow], spec: Allocate
) -> formats.Allocation:
    """The allocation in numbers, and its prediction: the sum of the sensitivities."""
    solution, settings = allocation.solution, task.settings
    by_type = {(row.name, row.type): row for row in table}
    pinned_rows = [by_type[item] for item in task.pinned.items() if item in by_type]
    rows = [*(row for choice in allocation.choices for row in choice.rows), *pinned_rows]
    kld = math.fsum(row.delta_kld for row in rows)
    errors = [row.se for row in rows if not math.isnan(row.se)]
    pinned_cost = math.fsum(map(settings.cost, pinned_rows))
    types = {**allocation.types, **task.pinned}
    smallest, largest = feasibility.size_range(allocation.groups, allocation.fixed)
    return {
        "recipe": spec["recipe"],
        "budget": {**spec["budget"], "bytes": task.budget},
        "memory": task.memory,
        "metadata_bytes": task.metadata,
        "bpw": allocation.bytes * 8 / task.parameters,
        "pinned": sorted(task.pinned),
        "rules": merge.as_lines({row.name: types[row.name] for row in task.quantizable}),
        "refit": None,  # of a stage that was removed; goes with the next version of the file
        "file_bytes": allocation.bytes,
        "least_bytes": smallest,
        "most_bytes": largest,
        "damage": settings.objective,
        "predicted_kld": None if math.isnan(kld) else kld,
        "predicted_se": math.hypot(*errors) if errors and not math.isnan(kld) else None,
        "how": dict(sorted(Counter(row.how for row in rows).items())),
        "objective": solution.cost + pinned_cost,
        "bound": solution.bound + pinned_cost,
        "gap": solution.gap,
        "solver": knapsack.solver_name(),
        "nodes": solution.nodes,
        "engine": settings.engine,
        "types": sorted({choice.type for group in allocation.groups for choice in group.choices}),
        "groups": len(allocation.groups),
        "choices": sum(len(group.choices) for group in allocation.groups),
        "harmonized": [
            list(roles)
            for roles in settings.harmonize
            if any(len(g.tensors) > 1 and g.tensors[0].role in roles for g in allocation.groups)
        ],
        "dominated": dominated(
            allocation.groups, task.floor.times(allocation.groups) if task.floor else None
        ),
        "warnings": [
            *_warnings(
                allocation, [name for name, kind in task.pinned.items() if (name, kind) not in by_type]
            ),
            *_warnings_of_size(allocation, task.budget),
            *task.warnings,
            *_warnings_of_imatrix(table, spec),
        ],
    }


def _warnings(allocation: Allocation, unknown: Sequence[str]) -> list[str]:
    warnings = []
    if unknown:
        names = ", ".join(sorted(unknown)[:3]) + (", ..." if len(unknown) > 3 else "")
        warnings.append(
            f"{len(unknown)} pinned tensors ({names}) have no sensitivity: the prediction leaves them out"
        )
    if allocation.solution.gap > 1e-6:
        warnings.append(f"the optimum is not proven: it may be up to {allocation.solution.gap:.2g} better")
    return warnings


def _warnings_of_size(allocation: Allocation, budget: int) -> list[str]:
    """A warning where the budget is not used up because nothing better is to be had."""
    pairs = list(zip(allocation.groups, allocation.choices, strict=True))
    best = all(chosen.cost == min(choice.cost for choice in group.choices) for group, chosen in pairs)
    if allocation.bytes >= budget or not best:
        return []
    size, limit = exact(allocation.bytes), exact(budget)
    if any(choice.bytes > chosen.bytes for group, chosen in pairs for choice in group.choices):
        return [f"the file takes {size} of the budget's {limit}: larger types would increase the loss"]
    return [f"{size} is the most that the candidate types can fill of {limit}"]


def _warnings_of_imatrix(table: Iterable[SensitivityRow], spec: Allocate) -> list[str]:
    """A warning where the sensitivities were measured with an imatrix that the recipe does not use."""
    unused = spec["use_imatrix"] == "none" and spec["imatrix"] is not None
    if not unused or all(row.how == "imported" for row in table):
        return []
    return [
        "the sensitivities were measured with the importance matrix, which this recipe does without:"
        " it will diverge more than was predicted"
    ]


def main(args: argparse.Namespace, log: Log) -> None:
    """Allocate one recipe for one model."""
    start = time.monotonic()
    table = read_sensitivity(args.sensitivity)
    header = read_source(args.model)
    recipe, report = size_targeted(header, table, args.spec["config"], args.grids, args.speeds)
    write_text(args.out, rules.dump(recipe))
    formats.ALLOCATION.write(args.report, report)
    size, limit = exact(report["file_bytes"]), exact(report["budget"]["bytes"])
    log.say(
        f"recipe {report['recipe']}: {size} of {limit}, {report['damage']} {report['objective']:.4g},"
        f" gap {report['gap']:.1g}, {len(recipe.rules)} rules, {time.monotonic() - start:.1f} s"
    )
    log.warn(report["warnings"])


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--sensitivity", type=Path, required=True, help="sensitivity.tsv")
    arguments.add_argument("--grids", type=Path, nargs="?", help="manifest.tsv, to keep the grids in it")
    arguments.add_argument("--speeds", type=Path, nargs="?", help="speeds.json, where there is a floor")
    arguments.add_argument("--out", type=Path, required=True, help="the recipe, as plain YAML")
    arguments.add_argument("--report", type=Path, required=True, help="the allocation in numbers, JSON")
    command.run(arguments, main)
