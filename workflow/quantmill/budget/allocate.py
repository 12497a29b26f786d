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
from quantmill.budget import knapsack, merge, refit
from quantmill.budget.choices import Choice, Group, Settings, groups, parse_pins, settings
from quantmill.errors import QuantmillError
from quantmill.files import write_json, write_text
from quantmill.model import memory
from quantmill.model.ggufio import Header, padded
from quantmill.model.header import read_source
from quantmill.model.types import fallback, tensor_bytes
from quantmill.progress import Log
from quantmill.recipe import plan, presets, rules
from quantmill.recipe.damage import Damage, read_damages
from quantmill.recipe.table import PlanRow


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
    found: Sequence[Group], fixed: int, budget: int, where: str, *, exactly: bool = True
) -> Allocation:
    """The allocation of least damage whose file, `fixed` bytes and the groups, is no larger than `budget`.

    QuantmillError, with the least and the most that can be reached, for a
    budget below the least, and (if `exactly`) for one above the most.
    """
    least = fixed + sum(min(choice.bytes for choice in group.choices) for group in found)
    most = fixed + sum(max(choice.bytes for choice in group.choices) for group in found)
    if budget < least or (exactly and budget > most):
        raise QuantmillError(
            f"{_size(budget)} cannot be reached", where,
            f"the file can have {_size(least)} at least and {_size(most)} at most",
        )  # fmt: skip
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
    header: Header, damages: Sequence[Damage], config: Mapping[str, Any], measured: Sequence[refit.File] = ()
) -> tuple[rules.Recipe, dict[str, Any]]:
    """The recipe of a budget and its report, for a model; `config` as the spec of the stage has it.

    `measured` files, where there are any, correct the damages first.
    """
    where = f"recipe {config['recipe']}"
    wanted = settings(config, where)
    second = refit.refit(damages, measured, where) if measured else None
    damages = second.corrected(damages) if second else damages

    # What is not chosen: the header, what is never quantized, what is pinned.
    plain = rules.Recipe("mainline", presets.of_type("q8_0"), config["use_imatrix"], ())
    imatrix = plan.use_imatrix(plain, config["imatrix"] is not None, where)
    mixture = presets.mixture(header, plain.base, imatrix=imatrix)
    whole = plan.resolve(header, plain, mixture, imatrix=imatrix, where=where)
    head = plan.metadata_bytes(header, whole, config["imatrix"])
    able = [row for row in whole.rows if row.name in mixture.quantizable]
    shapes = {row.name: row.shape for row in able}
    pins = parse_pins(config["pin"], wanted.engine, f"{where}: pin")
    decided = rules.assign(pins, header, mixture.quantizable, f"{where}: pin")
    pinned = {name: fallback(rule.type, shapes[name][0], wanted.engine) for name, rule in decided.items()}
    fixed = head + sum(padded(row.bytes) for row in whole.rows if row.name not in mixture.quantizable)
    fixed += sum(padded(tensor_bytes(kind, shapes[name])) for name, kind in pinned.items())

    parameters = sum(row.elements for row in whole.rows)
    budget, room = budget_of(config["budget"], header, parameters)
    free = [row for row in able if row.name not in pinned]
    important = plan.with_importance(header, [row.name for row in free], imatrix)
    found = groups(free, damages, wanted, important, where)
    allocation = allocate(found, fixed, budget, where, exactly="memory" not in config["budget"])
    types = {**allocation.types, **pinned}
    figures = _figures(allocation, pinned, damages, wanted, budget, second.floor if second else 0.0)
    figures["warnings"] += second.warnings if second else []
    return recipe_of(types, able, pins.rules, wanted, config["use_imatrix"]), {
        "recipe": config["recipe"],
        "budget": {**config["budget"], "bytes": budget},
        "memory": room,
        "metadata_bytes": head,
        "bpw": allocation.bytes * 8 / parameters,
        "pinned": sorted(pinned),
        "rules": merge.as_lines({row.name: types[row.name] for row in able}),
        "refit": second and second.report(),
        **figures,
    }


def budget_of(
    budget: Mapping[str, Any], header: Header, parameters: int
) -> tuple[int, dict[str, Any] | None]:
    """(bytes of the file, how memory is spent or None) of a size, bpw of the whole file, or memory."""
    if "size" in budget:
        return int(budget["size"]), None
    if "bpw" in budget:
        return math.floor(budget["bpw"] * parameters / 8), None
    asked = budget["memory"]
    needs = memory.needs(header, asked["context"], asked["cache"])
    left = asked["total"] - asked["reserve"] - needs.total
    spent = {**asked, "kv": needs.kv, "state": needs.state, "compute": needs.compute, "file": left}
    return left, spent


def _figures(
    allocation: Allocation,
    pinned: Mapping[str, str],
    damages: Iterable[Damage],
    wanted: Settings,
    budget: int,
    floor: float,
) -> dict[str, Any]:
    """What the report says of the allocation and of its prediction: the damages, and the `floor` if known."""
    solution = allocation.solution
    known = {(row.name, row.type): row for row in damages}
    held = [known[item] for item in pinned.items() if item in known]
    rows = [*(row for choice in allocation.choices for row in choice.rows), *held]
    kld = floor + sum(row.damage for row in rows)
    errors = [row.se for row in rows if not math.isnan(row.se)]
    held_damage = sum(row.damage if wanted.damage == "kld" else row.error for row in held)
    pool = {choice.type for group in allocation.groups for choice in group.choices}
    return {
        "file_bytes": allocation.bytes,
        "least_bytes": allocation.fixed + sum(min(c.bytes for c in g.choices) for g in allocation.groups),
        "most_bytes": allocation.fixed + sum(max(c.bytes for c in g.choices) for g in allocation.groups),
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
                f"{_size(allocation.bytes)} is all that the budget's {_size(budget)} are good for:"
                " larger types would do more damage"
            )
        else:
            said.append(f"{_size(allocation.bytes)} is the most that the pool can fill of {_size(budget)}")
    return said


def _size(size: int) -> str:
    unit, name = (1 << 30, "GiB") if abs(size) >= 1 << 30 else (1 << 20, "MiB")
    return f"{size:,} bytes ({size / unit:.2f} {name})"


def main(args: argparse.Namespace, log: Log) -> None:
    """Allocate one recipe for one model."""
    start = time.monotonic()
    config = args.spec["config"]
    files = zip(config["refit"], args.refit_plans, args.refit_klds, strict=True)
    measured = [refit.read_file(*file) for file in files]
    recipe, report = fit(read_source(args.model), read_damages(args.damages), config, measured)
    write_text(args.out, rules.dump(recipe))
    write_json(args.report, report)
    log.say(
        f"recipe {report['recipe']}: {_size(report['file_bytes'])} of {_size(report['budget']['bytes'])},"
        f" {report['damage']} {report['objective']:.4g}, gap {report['gap']:.1g},"
        f" {len(recipe.rules)} rules, {time.monotonic() - start:.1f} s"
    )
    log.warn(report["warnings"])


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--damages", type=Path, required=True, help="sensitivity.tsv")
    for what, of in (("plans", "the plan's table"), ("klds", "the divergence on the tuning corpus")):
        arguments.add_argument(f"--refit-{what}", type=Path, nargs="*", default=[],
                               help=f"{of} of each recipe of the first round")  # fmt: skip
    arguments.add_argument("--out", type=Path, required=True, help="the recipe, as plain YAML")
    arguments.add_argument("--report", type=Path, required=True, help="the allocation in numbers, JSON")
    command.run(arguments, main)
