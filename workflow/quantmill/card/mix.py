"""The type mix of files: which tensors have which types, by layer and role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from quantmill.formats.plan import PlanRow
from quantmill.judge.quant import Quant
from quantmill.judge.results import Results
from quantmill.text import code

_PANELS: Final = 6


def weights(quant: Quant) -> list[PlanRow]:
    """The tensors that a recipe can choose a type for: matrices, but not those that are never quantized."""
    return [
        tensor
        for tensor in quant.tensors
        if not tensor.reason.startswith("never") and len(tensor.shape) > 1 and "norm" not in tensor.role
    ]


def roles(results: Results) -> list[str]:
    """Roles of the weights in any file: those of the layers in the file's order, then those outside them."""
    last_layer: dict[str, int] = {}
    for quant in results.quants:
        for tensor in weights(quant):
            last_layer[tensor.role] = max(last_layer.get(tensor.role, -1), tensor.layer)
    return sorted(last_layer, key=lambda role: last_layer[role] < 0)


def roles_of(tensors: Iterable[PlanRow]) -> list[str]:
    """The roles of some tensors, each once."""
    return list(dict.fromkeys(tensor.role for tensor in tensors))


def cells(quant: Quant) -> dict[tuple[str, int], tuple[float, str]]:
    """(bits per weight, type) by role and layer; layer -1 holds the tensors outside the layers."""
    return {
        (tensor.role, tensor.layer): (8 * tensor.bytes / tensor.elements, tensor.type)
        for tensor in weights(quant)
    }


def bits_by_role(quant: Quant) -> dict[str, float]:
    """Bits per weight of each role, over all layers."""
    bytes_: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for tensor in weights(quant):
        bytes_[tensor.role] += tensor.bytes
        parameters[tensor.role] += tensor.elements
    return {role: 8 * bytes_[role] / parameters[role] for role in bytes_}


def uneven(quant: Quant) -> tuple[list[str], list[str]]:
    """Which tensors have more bits than the type that holds the most bytes, and which have fewer.

    Each entry reads `role (type, n of m)`; both are empty for a file of one type.
    """
    bits = {tensor.name: tensor.bytes * 8 / tensor.elements for tensor in weights(quant)}
    main = [bits[tensor.name] for tensor in weights(quant) if tensor.type == quant.type]
    if not main:
        return [], []
    tensors_of_role = Counter(tensor.role for tensor in weights(quant))
    groups = Counter((t.role, t.type, bits[t.name]) for t in weights(quant))
    above: list[str] = []
    below: list[str] = []
    for (role, type_, value), number in groups.items():
        if value != main[0]:
            all_ = tensors_of_role[role]
            part = "" if all_ == 1 else f", {number} of {all_}"
            (above if value > main[0] else below).append(f"{code(role)} ({type_}{part})")
    return above, below


def representative(quants: list[Quant]) -> list[Quant]:
    """At most six of the files, largest first: those of more than one type, evenly from large to small."""
    mixed = [quant for quant in quants if len({tensor.type for tensor in weights(quant)}) > 1]
    chosen = quants if len(quants) <= _PANELS else mixed if len(mixed) >= _PANELS else quants
    if len(chosen) <= _PANELS:
        return chosen
    return [chosen[round(place * (len(chosen) - 1) / (_PANELS - 1))] for place in range(_PANELS)]
