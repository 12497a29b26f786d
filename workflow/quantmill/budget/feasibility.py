"""The sizes that a size-targeted recipe can have in a model, from the smallest file to the largest.

All of it follows from the header. So the stage refuses an impossible recipe
before anything is measured for it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantmill import command, text
from quantmill.budget import pace, pools
from quantmill.budget.candidates import (
    Group,
    Settings,
    make_groups,
    parse_pins,
    parse_settings,
)
from quantmill.errors import QuantmillError
from quantmill.formats.allocation import FEASIBILITY, Feasibility, MemoryRoom
from quantmill.formats.budgets import Budget
from quantmill.formats.ggufio import Header, padded
from quantmill.formats.plan import PlanRow
from quantmill.formats.sensitivity import SensitivityRow
from quantmill.formats.settings import Allocate
from quantmill.formats.types import fallback, tensor_bytes
from quantmill.model import memory
from quantmill.model.header import read_source
from quantmill.model.heads import for_file, has_values
from quantmill.progress import Log
from quantmill.recipe import keep, mtp, plan, presets, rules


@dataclass(frozen=True)
class Problem:
    """What an allocation decides for one model.

    `quantizable` are the tensors that are ever quantized. `pins` are the rules
    that come first, `pinned` the types of the tensors that they decide, `groups`
    all other quantizable tensors. `fixed` are the bytes of the file that are not
    chosen, with its `metadata`. `budget` are the bytes that the file may have at
    most; `memory` says how a memory is spent, `pools` what two memories have (None
    for another budget).
    """

    where: str
    settings: Settings
    quantizable: list[PlanRow]
    pins: rules.Recipe
    pinned: dict[str, str]
    groups: list[Group]
    parameters: int
    metadata: int
    fixed: int
    budget: int
    memory: MemoryRoom | None
    warnings: list[str]
    pools: pools.Room | None = None
    floor: pace.Floor | None = None

    def check(self) -> float:
        """Tokens a second of the fastest choices in the budget; 0 where no floor is asked for.

        QuantmillError for a budget that cannot be met, or a floor that cannot be had, with what can.
        """
        if self.pools is not None:
            return pools.check(self.groups, self.pools, self.where, self.floor)
        check(self.groups, self.fixed, self.budget, self.where, self.memory)
        if self.floor is None:
            return 0.0
        times = self.floor.times(self.groups)
        best = self.floor.rate(pace.fastest(self.groups, times, self.budget - self.fixed), self.floor.left())
        self.floor.check(best)
        return best


def problem(
    header: Header,
    table: Sequence[SensitivityRow],
    spec: Allocate,
    grids: Path | None = None,
    speeds: Path | None = None,
) -> Problem:
    """What is to be chosen in a model; `spec` as the specs of the stages have it, `grids` the manifest whose
    grids are kept, `speeds` the measured speeds where the recipe has a floor.

    QuantmillError for whatever is wrong with the recipe's fields.
    """
    where = f"recipe {spec['recipe']}"
    settings = parse_settings(spec, where)
    whole_model, header = header, for_file(header, spec.get("mtp"))
    settings = replace(settings, kept=keep.kept(header, grids, settings.engine, where).types)
    plain = rules.Recipe("mainline", presets.of_type("q8_0"), spec["use_imatrix"], ())
    imatrix = plan.use_imatrix(plain, spec["imatrix"] is not None, where)
    mixture = presets.mixture(header, plain.base, imatrix=imatrix)
    whole = plan.resolve(header, plain, mixture, imatrix=imatrix, where=where)
    quantizable = [row for row in whole.rows if row.name in mixture.quantizable]

    # What is not chosen: the metadata, what is never quantized, what is pinned.
    metadata = plan.metadata_bytes(header, whole, spec["imatrix"])
    shapes = {row.name: row.shape for row in quantizable}
    pins = parse_pins(spec["pin"], settings.engine, f"{where}: pin")
    pins = mtp.with_head(pins, whole_model, spec.get("mtp"), where)
    decided = rules.assign(pins, header, mixture.quantizable, f"{where}: pin")
    pinned = {name: fallback(rule.type, shapes[name][0], settings.engine) for name, rule in decided.items()}
    given = [
        replace(row, type=pinned[row.name], reason=decided[row.name].label)
        for row in quantizable
        if row.name in pinned
    ]
    of_head = has_values(whole_model, spec["imatrix"], where)
    plan.check_imatrix(header, replace(pins, imatrix=spec["use_imatrix"]), given, imatrix, where, of_head)
    fixed = metadata + sum(padded(row.bytes) for row in whole.rows if row.name not in mixture.quantizable)
    fixed += sum(padded(tensor_bytes(kind, shapes[name])) for name, kind in pinned.items())

    parameters = sum(row.elements for row in whole.rows)
    free = [row for row in quantizable if row.name not in pinned]
    important = plan.with_importance(header, [row.name for row in free], imatrix)
    groups = make_groups(free, table, settings, important, where)
    two = None
    if "pools" in spec["budget"]:
        rest = [row for row in whole.rows if row.name not in mixture.quantizable]
        rest += [
            replace(row, type=pinned[row.name], bytes=tensor_bytes(pinned[row.name], row.shape))
            for row in quantizable
            if row.name in pinned
        ]
        two = pools.room_of(header, spec["budget"]["pools"], rest, groups, where)
        budget, room, context = two.most + metadata, None, two.budget["context"]
    else:
        budget, room = _budget(spec["budget"], header, parameters)
        context = 0 if room is None else room["context"]
    floor = None
    if "floor" in spec and speeds is not None:
        clock = pace.Clock.read(speeds, header)
        own = [pace.Weight(t.name, t.shape, t.type) for t in header.tensors if t.name in shapes]
        decided_weights = [pace.Weight(name, shapes[name], kind) for name, kind in pinned.items()]
        floor = pace.Floor(clock, spec["floor"], decided_weights, clock.rest(own), where)
    return Problem(
        where=where,
        settings=settings,
        quantizable=quantizable,
        pins=pins,
        pinned=pinned,
        groups=groups,
        parameters=parameters,
        metadata=metadata,
        fixed=fixed,
        budget=budget,
        memory=room,
        warnings=[*_warnings(header, context), *(floor.warnings if floor else [])],
        pools=two,
        floor=floor,
    )


def size_range(groups: Iterable[Group], fixed: int) -> tuple[int, int]:
    """(smallest, largest) size of a file of `fixed` bytes and the groups, in bytes."""
    sizes = [[choice.bytes for choice in group.choices] for group in groups]
    return fixed + sum(map(min, sizes)), fixed + sum(map(max, sizes))


def check(
    groups: Sequence[Group], fixed: int, budget: int, where: str, room: MemoryRoom | None = None
) -> None:
    """QuantmillError, with the range of sizes, for a budget outside it.

    A memory (`room`) need not be filled: there the budget may be above the largest size.
    """
    smallest, largest = size_range(groups, fixed)
    if room is not None and budget < smallest:
        taken = [room["kv"] + room["state"], room["compute"], room["reserve"]]
        total, file, cache, compute, reserve = map(text.size, (room["total"], smallest, *taken))
        enough = text.size(smallest + sum(taken))
        raise QuantmillError(
            f"{total} of memory cannot hold it: the file takes {file} at least, the context {cache},"
            f" the computation {compute}, the reserve {reserve}",
            f"{where}.memory",
            f"give it about {enough}, or ask for a shorter context or a smaller cache",
        )
    if budget < smallest or (room is None and budget > largest):
        raise QuantmillError(
            f"{exact(budget)} cannot be reached",
            where,
            f"the file can have {exact(smallest)} at least and {exact(largest)} at most",
        )


def exact(size: int) -> str:
    """`1,572,864 bytes (1.50 MiB)`."""
    unit, name = (1 << 30, "GiB") if size >= 1 << 30 else (1 << 20, "MiB")
    return f"{size:,} bytes ({size / unit:.2f} {name})"


def header_table(header: Header, types: Sequence[str]) -> list[SensitivityRow]:
    """The rows that a sensitivity with these candidate types will have, all at no cost."""
    return [
        SensitivityRow(t.name, "", 0, t.shape, kind, tensor_bytes(kind, t.shape), 0.0, 0.0, 0.0)
        for t in header.tensors
        for kind in dict.fromkeys(fallback(kind, t.shape[0]) for kind in types)
    ]


def _budget(budget: Budget, header: Header, parameters: int) -> tuple[int, MemoryRoom | None]:
    """(bytes of the file, how memory is spent or None) of a size, bpw of the whole file, or memory."""
    if "size" in budget:
        return int(budget["size"]), None
    if "bpw" in budget:
        return math.floor(budget["bpw"] * parameters / 8), None
    device = budget["memory"]
    needs = memory.needs(header, device["context"], device["cache"])
    room: MemoryRoom = {
        **device,
        "kv": needs.kv,
        "state": needs.state,
        "compute": needs.compute,
        "file": device["total"] - device["reserve"] - needs.total,
    }
    return room["file"], room


def _warnings(header: Header, context: int) -> list[str]:
    trained = header.number(f"{header.architecture}.context_length")
    if not 0 < trained < context:
        return []
    return [f"room is left for {context:,} tokens of context; the model was trained for {trained:,}"]


def main(args: argparse.Namespace, log: Log) -> None:
    """Refuse a recipe that cannot be met with the types that will be measured."""
    spec: Allocate = args.spec["config"]
    header = read_source(args.model)
    task = problem(header, header_table(header, spec["measured"]), spec, args.grids, args.speeds)
    task.check()
    smallest, largest = size_range(task.groups, task.fixed)
    report: Feasibility = {
        "recipe": spec["recipe"],
        "budget_bytes": task.budget,
        "least_bytes": smallest,
        "most_bytes": largest,
        "warnings": task.warnings,
    }
    FEASIBILITY.write(args.out, report)
    log.say(f"recipe {spec['recipe']}: {exact(task.budget)}; possible {exact(smallest)} to {exact(largest)}")
    log.warn(task.warnings)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--grids", type=Path, nargs="?", help="manifest.tsv, to keep the grids in it")
    arguments.add_argument("--speeds", type=Path, nargs="?", help="speeds.json, where there is a floor")
    arguments.add_argument("--out", type=Path, required=True, help="the range of sizes, JSON")
    command.run(arguments, main)
