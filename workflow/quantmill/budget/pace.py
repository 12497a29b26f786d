"""The time of a token by the types of the weights, and a floor of the speed as a limit of the allocation.

A token takes the time of its multiplications by weights, each measured for the type and the shape
(`budget.speed`), and a rest: attention over the cache, norms, and what else is not chosen. The rest is the
time of a token of the source beyond that of its own weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from quantmill.budget import knapsack
from quantmill.budget.candidates import Choice, Group
from quantmill.budget.places import CPU, EMBEDDINGS, place_of
from quantmill.engine.matmul import Shape
from quantmill.errors import QuantmillError
from quantmill.formats.allocation import Pace
from quantmill.formats.ggufio import Header
from quantmill.formats.speeds import SPEEDS, Speeds
from quantmill.model.roles import layer_of
from quantmill.text import plural

PER_SECOND: Final = 10**12
"""Times are whole picoseconds, so that they add up to the same everywhere."""


class Weight(NamedTuple):
    """A tensor that tokens are multiplied by."""

    name: str
    shape: tuple[int, ...]
    type: str


def shape_of(header: Header, name: str, shape: Sequence[int]) -> Shape | None:
    """How a token is multiplied by a tensor; None where it is not: rows of it are looked up, or it is of a
    head for drafts.
    """
    place = place_of(name)
    if (place == CPU and not (name == EMBEDDINGS[0] and _is_tied(header))) or _is_draft(header, name):
        return None
    matrices = shape[2] if len(shape) > 2 else 1
    used = header.number(f"{header.architecture}.expert_used_count") if place >= 0 else 0
    return Shape(shape[0], shape[1], matrices, min(used, matrices))


def _is_tied(header: Header) -> bool:
    """Whether the output is the embeddings' matrix. It looks at all tensors: for the embeddings alone."""
    return all(tensor.name != "output.weight" for tensor in header.tensors)


def _is_draft(header: Header, name: str) -> bool:
    return header.has_mtp and layer_of(name) >= header.evaluated


@dataclass(frozen=True)
class Clock:
    """The measured times of a machine for one model."""

    header: Header
    speeds: Speeds
    times: Mapping[tuple[str, Shape, str], int]

    @classmethod
    def read(cls, path: Path, header: Header) -> Clock:
        """The times in speeds.json."""
        speeds = SPEEDS.read(path)
        times = {
            (
                one["device"],
                Shape(one["columns"], one["rows"], one["matrices"], one["used"]),
                one["type"],
            ): round(one["generate"]["median"] * PER_SECOND)
            for one in speeds["types"]
        }
        return cls(header, speeds, times)

    @property
    def main(self) -> str:
        """The device that has the model, or of two memories the GPU's."""
        return self.speeds["devices"][0]["name"]

    @property
    def cpu(self) -> str:
        """The CPU."""
        return self.speeds["devices"][-1]["name"]

    def time(self, weight: Weight, device: str) -> int:
        """Picoseconds that a token takes for a tensor. QuantmillError for what was not measured."""
        shape = shape_of(self.header, weight.name, weight.shape)
        if shape is None:
            return 0
        try:
            return self.times[device, shape, weight.type]
        except KeyError:
            what = f"has no time of {weight.name} at {weight.type}"
            raise QuantmillError(what, SPEEDS.path, "delete it to have it measured again") from None

    def of_choice(self, group: Group, choice: Choice, device: str) -> int:
        """The same of a choice of a group."""
        pairs = zip(group.tensors, choice.types, strict=True)
        return sum(self.time(Weight(tensor.name, tensor.shape, kind), device) for tensor, kind in pairs)

    def rest(self, weights: Iterable[Weight]) -> int:
        """Picoseconds of a token of the source beyond those of `weights`, which are the source's own."""
        source = self.speeds["source"]
        if source is None:
            return 0
        token = PER_SECOND * source["median"]
        return max(0, round(token - sum(self.time(weight, self.main) for weight in weights)))


@dataclass(frozen=True)
class Floor:
    """A floor of the speed: `pinned` are the weights that are decided already, `rest` is what a token takes
    beside all weights, in picoseconds.
    """

    clock: Clock
    tokens_a_second: float
    pinned: Sequence[Weight]
    rest: int
    where: str

    def times(self, groups: Sequence[Group], on_cpu: frozenset[int] = frozenset()) -> list[list[int]]:
        """Picoseconds of each choice of each group; of two memories `on_cpu` are the layers whose experts are
        on the CPU.
        """
        devices = [self._device(group.tensors[0].name, on_cpu) for group in groups]
        return [
            [self.clock.of_choice(group, choice, device) for choice in group.choices]
            for group, device in zip(groups, devices, strict=True)
        ]

    def left(self, on_cpu: frozenset[int] = frozenset()) -> int:
        """Picoseconds that the choices may take together."""
        pinned = sum(self.clock.time(weight, self._device(weight.name, on_cpu)) for weight in self.pinned)
        return self._token - self.rest - pinned

    def _device(self, name: str, on_cpu: frozenset[int]) -> str:
        return self.clock.cpu if place_of(name) in on_cpu else self.clock.main

    @property
    def _token(self) -> int:
        """Picoseconds of a token at the floor."""
        return int(PER_SECOND / self.tokens_a_second)

    def rate(self, time: int, left: int) -> float:
        """Tokens a second where the choices take `time`, and `left` is what they may take."""
        return PER_SECOND / max(1, time + self._token - left)

    def check(self, best: float) -> None:
        """QuantmillError where the floor is above the most tokens a second that can be had."""
        if best >= self.tokens_a_second:
            return
        unit = 10.0 ** (math.floor(math.log10(best)) - 2)
        most = f"{math.floor(best / unit) * unit:.3g}"
        raise QuantmillError(
            f"{self.tokens_a_second:g} tokens a second cannot be had within its budget:"
            f" {most} are the most on {self.machine}",
            f"{self.where}.at_least.tg",
            f"ask for {most} or less, add faster types, or give it a larger budget",
        )

    @property
    def machine(self) -> str:
        """What was measured, in words."""
        speeds = self.clock.speeds
        devices = [one["description"] for one in speeds["devices"][:-1]]
        cpu = f"{speeds['machine']['cpu']}, {plural(speeds['threads'], 'thread')}"
        return " and ".join([*devices, cpu])

    def report(self, predicted: float, fastest: float) -> Pace:
        """What tokens a second the choices are predicted to do, and the fastest choices."""
        source = self.clock.speeds["source"]
        return {
            "floor": self.tokens_a_second,
            "predicted": predicted,
            "fastest": fastest,
            "source": None if source is None else 1 / source["median"],
            "rest": self.rest / PER_SECOND,
            "machine": self.machine,
        }

    @property
    def warnings(self) -> list[str]:
        """A warning where the rest of a token's time is not known."""
        if self.clock.speeds["source"] is not None:
            return []
        why = self.clock.speeds.get("why_not", "")
        return [
            f"tg is predicted by the weights alone, too high: the source's own speed is not known ({why})"
        ]


def fastest(groups: Sequence[Group], times: Sequence[Sequence[int]], capacity: int) -> int:
    """The least time, in picoseconds, that the groups can take within `capacity` bytes."""
    sizes = [[choice.bytes for choice in group.choices] for group in groups]
    picks = knapsack.solve(sizes, [list(map(float, row)) for row in times], capacity).picks
    return sum(row[pick] for row, pick in zip(times, picks, strict=True))
