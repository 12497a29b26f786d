"""A budget of two memories: a GPU's, and the CPU's beside it for the experts that the GPU has no room for.

llama.cpp keeps the embeddings of tokens on the CPU, and with `--n-cpu-moe N` the experts of the first N
layers; all else, the context's cache and the buffers of the computation are on the GPU. For each N that is
two knapsacks that share nothing, so that each is solved to the optimum, and of all N the best is taken; of
equal ones the least, for what is on the GPU is fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from quantmill import text
from quantmill.budget import knapsack
from quantmill.budget.candidates import Choice, Group
from quantmill.budget.pace import Floor, fastest
from quantmill.budget.places import CPU, EMBEDDINGS, EXPERTS, GPU, place_of
from quantmill.errors import QuantmillError
from quantmill.formats.allocation import Pools, PoolUse
from quantmill.formats.budgets import PoolsBudget
from quantmill.formats.ggufio import Header, padded
from quantmill.formats.plan import PlanRow
from quantmill.formats.types import tensor_bytes
from quantmill.model import memory


@dataclass
class Fixed:
    """Bytes that are not chosen, on the GPU, on the CPU, and of the experts of each layer."""

    gpu: int = 0
    cpu: int = 0
    experts: dict[int, int] = field(default_factory=dict)

    def add(self, name: str, size: int) -> None:
        """Add a tensor."""
        place = place_of(name)
        if place == GPU:
            self.gpu += size
        elif place == CPU:
            self.cpu += size
        else:
            self.experts[place] = self.experts.get(place, 0) + size


@dataclass(frozen=True)
class Room:
    """What the two memories have for weights that are chosen or not, and what else they hold.

    `layers` are those with experts, `copied` the bytes on the CPU of embeddings that are the output's too, at
    their largest, `staged` those on the GPU of the largest experts that are copied there for a prompt.
    """

    budget: PoolsBudget
    needs: memory.Memory
    fixed: Fixed
    layers: tuple[int, ...]
    copied: int
    staged: int

    def beside_gpu(self, count: int) -> int:
        """What the GPU holds beside weights, with `count` layers' experts on the CPU."""
        return self.needs.total + (self.staged if count else 0) + self.budget["reserve"]

    @property
    def beside_cpu(self) -> int:
        """What the CPU holds beside weights that are chosen."""
        return self.needs.compute + self.copied + self.budget["reserve"]

    @property
    def most(self) -> int:
        """Bytes of weights that both can hold."""
        return self.budget["gpu"] + self.budget["cpu"] - self.beside_gpu(0) - self.beside_cpu


def room_of(
    header: Header, budget: PoolsBudget, fixed: Iterable[PlanRow], groups: Sequence[Group], where: str
) -> Room:
    """The room of two memories for a model. QuantmillError for one without experts."""
    layers = sorted({place for t in header.tensors if (place := place_of(t.name)) >= 0})
    if not layers:
        cure = "give it a memory of one device: {total: 16 GiB, context: 32768}"
        raise QuantmillError("two memories are for mixtures of experts, and the model is none", where, cure)
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    rest = Fixed()
    for row in fixed:
        rest.add(row.name, padded(row.bytes))
        rest.gpu += padded(row.bytes) if tied and row.name == EMBEDDINGS[0] else 0
    largest = [_largest(group) for group in groups if place_of(group.tensors[0].name) >= 0]
    return Room(
        budget=budget,
        needs=memory.needs(header, budget["context"], budget["cache"]),
        fixed=rest,
        layers=tuple(layers),
        copied=sum(_most(group) for group in groups if tied and _is_embeddings(group)),
        staged=max(largest, default=0),
    )


def check(groups: Sequence[Group], room: Room, where: str, floor: Floor | None = None) -> float:
    """Tokens a second of the fastest choices that the memories can hold; 0 where no floor is asked for.

    QuantmillError, with the least that can hold the model, where the memories are too small, and with the
    most where they cannot have the floor.
    """
    splits = _splits(groups, _places(groups, where, room), room, where)
    if floor is None:
        return 0.0
    best = 0.0
    for count, *parts in splits:
        times, left = _times(groups, room, count, floor)
        best = max(best, floor.rate(sum(_fastest(groups, part, times) for part in parts), left))
    floor.check(best)
    return best


def solve(
    groups: Sequence[Group], room: Room, where: str, floor: Floor | None = None
) -> tuple[int, knapsack.Solution]:
    """(how many of the first layers have their experts on the CPU, the choices of all groups).

    QuantmillError, with the least that can hold it, where the memories are too small. `floor` is one that
    they can have (`check`). It is the only thing that the two memories share: where the choices of both apart
    are too slow, both are chosen together.
    """
    best: tuple[int, knapsack.Solution] | None = None
    for count, gpu, cpu in _splits(groups, _places(groups, where, room), room, where):
        solution = _apart(groups, gpu, cpu)
        if best is not None and solution.bound >= best[1].cost:
            continue
        if floor is not None:
            times, left = _times(groups, room, count, floor)
            if sum(times[g][pick] for g, pick in enumerate(solution.picks)) > left:
                if sum(_fastest(groups, part, times) for part in (gpu, cpu)) > left:
                    continue
                solution = _together(groups, gpu, cpu, knapsack.Limit(times, left))
        if best is None or solution.cost < best[1].cost:
            best = count, solution
    assert best is not None  # `_splits` and `check` refuse where there is none
    return best


Part = tuple[list[int], int]
"""Groups by number, and the bytes that they may have."""


def _splits(
    groups: Sequence[Group], places: Sequence[int], room: Room, where: str
) -> list[tuple[int, Part, Part]]:
    """What is on the GPU and on the CPU, for each number of layers with experts on the CPU that fits."""
    splits, least = [], []
    for count in range(len(room.layers) + 1):
        on_cpu = frozenset(room.layers[:count])
        parts = (
            [g for g, place in enumerate(places) if place == GPU or (place >= 0 and place not in on_cpu)],
            [g for g, place in enumerate(places) if place == CPU or place in on_cpu],
        )
        experts = [room.fixed.experts.get(layer, 0) for layer in room.layers]
        taken = (
            room.beside_gpu(count) + room.fixed.gpu + sum(experts[count:]),
            room.beside_cpu + room.fixed.cpu + sum(experts[:count]),
        )
        needed = tuple(
            used + sum(min(choice.bytes for choice in groups[g].choices) for g in part)
            for used, part in zip(taken, parts, strict=True)
        )
        least.append((needed[0], needed[1]))
        if needed[0] <= room.budget["gpu"] and needed[1] <= room.budget["cpu"]:
            gpu, cpu = ((part, size) for part, size in zip(parts, taken, strict=True))
            splits.append(
                (count, (gpu[0], room.budget["gpu"] - gpu[1]), (cpu[0], room.budget["cpu"] - cpu[1]))
            )
    if not splits:
        raise _too_small(least, room, where)
    return splits


def _too_small(least: Sequence[tuple[int, int]], room: Room, where: str) -> QuantmillError:
    """The refusal of memories that cannot hold a model: what each needs at least beside the other."""
    gpu, cpu = room.budget["gpu"], room.budget["cpu"]
    has = f"{text.size(gpu)} of GPU and {text.size(cpu)} of CPU memory cannot hold it"
    cure = "ask for a shorter context or a smaller cache, or add types of fewer bits"
    fewest = min((needed for needed, _ in least), default=0)
    if fewest > gpu:
        what = f"{has}: the GPU needs {text.size(fewest)} at least, with all experts on the CPU"
        return QuantmillError(what, f"{where}.memory", f"give it about that, or {cure}")
    beside = min(needed for on_gpu, needed in least if on_gpu <= gpu)
    what = f"{has}: beside such a GPU the CPU needs {text.size(beside)} at least"
    return QuantmillError(what, f"{where}.memory", f"give it about that, or {cure}")


def _apart(groups: Sequence[Group], *parts: Part) -> knapsack.Solution:
    """The best choices of the parts, which share nothing."""
    picks: dict[int, int] = {}
    solutions = []
    for part, capacity in parts:
        choices = [groups[g].choices for g in part]
        solution = knapsack.solve(
            [[choice.bytes for choice in of_group] for of_group in choices],
            [[choice.cost for choice in of_group] for of_group in choices],
            capacity,
        )
        picks |= dict(zip(part, solution.picks, strict=True))
        solutions.append(solution)
    cost = math.fsum(groups[g].choices[pick].cost for g, pick in picks.items())
    return knapsack.Solution(
        picks=tuple(picks[g] for g in range(len(groups))),
        size=sum(solution.size for solution in solutions),
        cost=cost,
        bound=min(cost, math.fsum(solution.bound for solution in solutions)),
        nodes=sum(solution.nodes for solution in solutions),
    )


def _together(groups: Sequence[Group], gpu: Part, cpu: Part, limit: knapsack.Limit) -> knapsack.Solution:
    """The best choices of both parts within a limit that is of both."""
    sizes = [[choice.bytes for choice in group.choices] for group in groups]
    costs = [[choice.cost for choice in group.choices] for group in groups]
    of_gpu, of_cpu = (
        knapsack.Limit([row if g in part else [0] * len(row) for g, row in enumerate(sizes)], capacity)
        for part, capacity in ((frozenset(part), capacity) for part, capacity in (gpu, cpu))
    )
    return knapsack.solve(sizes, costs, gpu[1] + cpu[1], [of_gpu, of_cpu, limit])


def _times(groups: Sequence[Group], room: Room, count: int, floor: Floor) -> tuple[list[list[int]], int]:
    """(the time of each choice, what all may take) with `count` layers' experts on the CPU."""
    on_cpu = frozenset(room.layers[:count])
    return floor.times(groups, on_cpu), floor.left(on_cpu)


def _fastest(groups: Sequence[Group], part: Part, times: Sequence[Sequence[int]]) -> int:
    """The least time that the groups of a part can take within its memory."""
    return fastest([groups[g] for g in part[0]], [times[g] for g in part[0]], part[1])


def _places(groups: Sequence[Group], where: str, room: Room) -> list[int]:
    return [_place(group, where, tied=bool(room.copied)) for group in groups]


def _place(group: Group, where: str, *, tied: bool) -> int:
    """Where a group is; embeddings that are the output's too are counted on the GPU."""
    places = {place_of(tensor.name) for tensor in group.tensors}
    if len(places) > 1:
        names = " and ".join(tensor.name for tensor in group.tensors)
        cure = "leave them apart under harmonize"
        raise QuantmillError(f"{names} share a type and are not in the same memory", where, cure)
    place = places.pop()
    return GPU if place == CPU and tied and _is_embeddings(group) else place


def _is_embeddings(group: Group) -> bool:
    return group.tensors[0].name == EMBEDDINGS[0]


def _most(group: Group) -> int:
    return max(choice.bytes for choice in group.choices)


def _largest(group: Group) -> int:
    """Bytes of the largest tensor of a group at its largest type."""
    return max(
        tensor_bytes(kind, tensor.shape)
        for choice in group.choices
        for tensor, kind in zip(group.tensors, choice.types, strict=True)
    )


def report(groups: Sequence[Group], choices: Sequence[Choice], room: Room, count: int) -> Pools:
    """What is where, in bytes, and the flags that have llama.cpp put it there."""
    on_cpu = frozenset(room.layers[:count])
    used = Fixed(room.fixed.gpu, room.fixed.cpu, dict(room.fixed.experts))
    for group, choice in zip(groups, choices, strict=True):
        place = _place(group, "", tied=bool(room.copied))
        if place == GPU:
            used.gpu += choice.bytes
        else:
            for tensor, kind in zip(group.tensors, choice.types, strict=True):
                used.add(tensor.name, padded(tensor_bytes(kind, tensor.shape)))
    experts = [
        sum(size for layer, size in used.experts.items() if (layer in on_cpu) == on) for on in (False, True)
    ]
    reserve, needs = room.budget["reserve"], room.needs
    gpu: PoolUse = {
        "total": room.budget["gpu"],
        "weights": used.gpu,
        "experts": experts[0],
        "cache": needs.kv + needs.state,
        "compute": needs.compute + (room.staged if count else 0),
        "reserve": reserve,
    }
    cpu: PoolUse = {
        "total": room.budget["cpu"],
        "weights": used.cpu + room.copied,
        "experts": experts[1],
        "cache": 0,
        "compute": needs.compute,
        "reserve": reserve,
    }
    return {
        "gpu": gpu,
        "cpu": cpu,
        "context": room.budget["context"],
        "cache_type": room.budget["cache"],
        "layers": len(room.layers),
        "on_cpu": sorted(on_cpu),
        "flags": flags(room, count),
        "override": override(sorted(on_cpu)),
    }


def flags(room: Room, count: int) -> list[str]:
    """llama.cpp's flags, a word each. `--n-cpu-moe` counts layers from the first, with experts or without."""
    words = ["-ngl", "99", "-c", str(room.budget["context"])]
    if room.budget["cache"] != "f16":
        words += ["-fa", "on", "-ctk", room.budget["cache"], "-ctv", room.budget["cache"]]
    return words + (["--n-cpu-moe", str(room.layers[count - 1] + 1)] if count else [])


def override(layers: Sequence[int]) -> str:
    """The value of `-ot` that says the same as `--n-cpu-moe`; empty where no experts are on the CPU."""
    return f"blk\\.({'|'.join(map(str, layers))}){EXPERTS}=CPU" if layers else ""
