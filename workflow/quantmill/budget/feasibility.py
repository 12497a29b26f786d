"""What a budget recipe can reach in a model: what is to be chosen, and the bytes of the least and the most.

All of it follows from the header. So, as a stage, it refuses a recipe before
anything is measured for it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantmill import command, text
from quantmill.budget.candidates import Group, Settings, groups, parse_pins, settings
from quantmill.errors import QuantmillError
from quantmill.files import write_json
from quantmill.formats.ggufio import Header, padded
from quantmill.formats.plan import PlanRow
from quantmill.formats.sensitivity import Damage
from quantmill.formats.types import fallback, tensor_bytes
from quantmill.model import memory
from quantmill.model.header import read_source
from quantmill.progress import Log
from quantmill.recipe import plan, presets, rules


@dataclass(frozen=True)
class Problem:
    """What an allocation decides for one model.

    `able` are the tensors that are ever quantized, `pinned` the types of those that
    `pins`, rules that come first, decide, `groups` all others. `fixed` are the bytes
    of the file that are not chosen, `metadata` among them; `budget` those it may
    have at most, `room` how a memory is spent (None for another budget).
    """

    where: str
    wanted: Settings
    able: list[PlanRow]
    pins: rules.Recipe
    pinned: dict[str, str]
    groups: list[Group]
    parameters: int
    metadata: int
    fixed: int
    budget: int
    room: dict[str, Any] | None
    warnings: list[str]


def problem(header: Header, damages: Sequence[Damage], config: Mapping[str, Any]) -> Problem:
    """What is to be chosen in a model; `config` as the specs of the stages have it.

    QuantmillError for whatever is wrong with the recipe's fields.
    """
    where = f"recipe {config['recipe']}"
    wanted = settings(config, where)
    plain = rules.Recipe("mainline", presets.of_type("q8_0"), config["use_imatrix"], ())
    imatrix = plan.use_imatrix(plain, config["imatrix"] is not None, where)
    mixture = presets.mixture(header, plain.base, imatrix=imatrix)
    whole = plan.resolve(header, plain, mixture, imatrix=imatrix, where=where)
    able = [row for row in whole.rows if row.name in mixture.quantizable]

    # What is not chosen: the header, what is never quantized, what is pinned.
    metadata = plan.metadata_bytes(header, whole, config["imatrix"])
    shapes = {row.name: row.shape for row in able}
    pins = parse_pins(config["pin"], wanted.engine, f"{where}: pin")
    decided = rules.assign(pins, header, mixture.quantizable, f"{where}: pin")
    pinned = {name: fallback(rule.type, shapes[name][0], wanted.engine) for name, rule in decided.items()}
    fixed = metadata + sum(padded(row.bytes) for row in whole.rows if row.name not in mixture.quantizable)
    fixed += sum(padded(tensor_bytes(kind, shapes[name])) for name, kind in pinned.items())

    parameters = sum(row.elements for row in whole.rows)
    budget, room = _budget(config["budget"], header, parameters)
    free = [row for row in able if row.name not in pinned]
    important = plan.with_importance(header, [row.name for row in free], imatrix)
    return Problem(
        where, wanted, able, pins, pinned, groups(free, damages, wanted, important, where), parameters,
        metadata, fixed, budget, room, _warnings(header, room),
    )  # fmt: skip


def reach(found: Iterable[Group], fixed: int) -> tuple[int, int]:
    """(the least, the most) bytes of a file of `fixed` bytes and the groups."""
    sizes = [[choice.bytes for choice in group.choices] for group in found]
    return fixed + sum(map(min, sizes)), fixed + sum(map(max, sizes))


def check(
    found: Sequence[Group], fixed: int, budget: int, where: str, room: Mapping[str, Any] | None = None
) -> None:
    """QuantmillError, with what can be reached, for a budget below the least.

    Above the most too, but for a memory (`room`), which need not be filled.
    """
    least, most = reach(found, fixed)
    if room is not None and budget < least:
        taken = [room["kv"] + room["state"], room["compute"], room["reserve"]]
        total, file, cache, compute, reserve = map(text.size, (room["total"], least, *taken))
        raise QuantmillError(
            f"{total} of memory cannot hold it: the file takes {file} at least, the context {cache},"
            f" the computation {compute}, the reserve {reserve}", f"{where}.memory",
            f"give it about {text.size(least + sum(taken))}, or ask for a shorter context or a smaller cache",
        )  # fmt: skip
    if budget < least or (room is None and budget > most):
        raise QuantmillError(
            f"{in_words(budget)} cannot be reached", where,
            f"the file can have {in_words(least)} at least and {in_words(most)} at most",
        )  # fmt: skip


def in_words(size: int) -> str:
    """Bytes, exactly and as people read them."""
    unit, name = (1 << 30, "GiB") if size >= 1 << 30 else (1 << 20, "MiB")
    return f"{size:,} bytes ({size / unit:.2f} {name})"


def possible(header: Header, types: Sequence[str]) -> list[Damage]:
    """The choices that a sensitivity with the pool `types` will know of, without damage."""
    return [
        Damage(t.name, "", 0, t.shape, kind, tensor_bytes(kind, t.shape), 0.0, 0.0, 0.0)
        for t in header.tensors
        for kind in dict.fromkeys(fallback(kind, t.shape[0]) for kind in types)
    ]


def _budget(budget: Mapping[str, Any], header: Header, parameters: int) -> tuple[int, dict[str, Any] | None]:
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


def _warnings(header: Header, room: Mapping[str, Any] | None) -> list[str]:
    trained = int(header.value(f"{header.architecture}.context_length", 0))
    if room is None or not 0 < trained < room["context"]:
        return []
    return [f"room is left for {room['context']:,} tokens of context; the model was trained for {trained:,}"]


def main(args: argparse.Namespace, log: Log) -> None:
    """Refuse what a recipe cannot reach, by the types that will be measured."""
    config, header = args.spec["config"], read_source(args.model)
    found = problem(header, possible(header, config["measured"]), config)
    check(found.groups, found.fixed, found.budget, found.where, found.room)
    least, most = reach(found.groups, found.fixed)
    write_json(args.out, {
        "recipe": config["recipe"], "budget_bytes": found.budget, "least_bytes": least, "most_bytes": most,
        "warnings": found.warnings,
    })  # fmt: skip
    log.say(f"recipe {config['recipe']}: {in_words(found.budget)}, of {in_words(least)} to {in_words(most)}")
    log.warn(found.warnings)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--out", type=Path, required=True, help="what can be reached, JSON")
    command.run(arguments, main)
