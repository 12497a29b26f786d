"""An allocation as few readable rules, which give every tensor the same type."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from quantmill.budget.candidates import Tensor
from quantmill.formats.types import known
from quantmill.model.roles import ROLES
from quantmill.recipe.rules import Rule

WHY: Final = "budget"
_BLOCK: Final = re.compile(r"(.*\bblk\.)(\d+)(\..*)")


def merged(tensors: Iterable[Tensor], types: Mapping[str, str], first: Sequence[Rule] = ()) -> list[Rule]:
    """Rules that give each of `tensors` its type. The first rule that matches decides.

    First come the rules `first`, then exceptions, then a rule for the most common
    type of each role. An exception names its layers, or the tensor where tensors
    of one role and layer differ. Roles with the same exception share a rule.
    """
    by_role: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for tensor in tensors:
        by_role[tensor.role][tensor.layer].append(tensor)
    single: list[Rule] = []
    exceptions: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    rest: dict[str, list[str]] = defaultdict(list)
    for role, layers in by_role.items():
        usual = _usual(types[tensor.name] for of in layers.values() for tensor in of)
        by_type: dict[str, list[int]] = defaultdict(list)
        for layer, of in sorted(layers.items()):
            kinds = {types[tensor.name] for tensor in of}
            if role not in ROLES or layer < 0 or len(kinds) > 1:
                single += [
                    Rule(0, types[tensor.name], match=re.escape(tensor.name), why=WHY)
                    for tensor in of
                    if types[tensor.name] != usual or role not in ROLES
                ]
            elif kinds != {usual}:
                by_type[kinds.pop()].append(layer)
        for kind, numbers in by_type.items():
            exceptions[kind, tuple(numbers)].append(role)
        if role in ROLES:
            rest[usual].append(role)
    rules = [*first, *single]
    rules += [
        Rule(0, kind, tuple(roles), layers=numbers, why=WHY) for (kind, numbers), roles in exceptions.items()
    ]
    rules += [Rule(0, kind, tuple(roles), why=WHY) for kind, roles in rest.items()]
    return [replace(rule, number=number) for number, rule in enumerate(rules, start=1)]


def as_lines(types: Mapping[str, str]) -> list[str]:
    """An allocation as `regex=type` lines, which GGUF-Tool-Suite and `--tensor-type-file` read.

    Each line matches its own tensors and no others of `types`: their order does not matter.
    """
    layers: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    lines = []
    for name, kind in types.items():
        block = _BLOCK.fullmatch(name)
        if block:
            layers[block[1], block[3], kind].append(int(block[2]))
        else:
            lines.append(f"^{re.escape(name)}$={kind}")
    for (before, after, kind), numbers in layers.items():
        which = "|".join(map(str, sorted(numbers)))
        which = f"({which})" if len(numbers) > 1 else which
        lines.append(f"^{re.escape(before)}{which}{re.escape(after)}$={kind}")
    return lines


def _usual(types: Iterable[str]) -> str:
    """The most common type; of equally common ones the one with the most bits."""
    counted = Counter(types)
    return max(counted, key=lambda kind: (counted[kind], known(kind).bits, kind))
