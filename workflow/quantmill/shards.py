"""A shard of a stage's work: one of several jobs that fill the store, before the stage puts it together."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Shard(NamedTuple):
    """The shard `number`, from 0, of `total`."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}of{self.total}"

    def of(self, units: Sequence[T]) -> list[T]:
        """Its units of all. They are the same units, whatever the total."""
        return list(units[self.number :: self.total])

    def first(self, units: Sequence[T]) -> list[T]:
        """All units, its own before the others'. Those are from their ends, where their own shards come last,
        so that one that is late, or never runs, holds up nobody.
        """
        others = [Shard((self.number + step) % self.total, self.total) for step in range(1, self.total)]
        return [*self.of(units), *(unit for other in others for unit in reversed(other.of(units)))]

    @classmethod
    def parse(cls, text: str) -> Shard | None:
        """`2of8` as a shard; None for an empty text, which is all of the work. For argparse."""
        if not text:
            return None
        match = re.fullmatch(r"(\d+)of(\d+)", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise argparse.ArgumentTypeError(f"{text!r} is no shard: 0of4 to 3of4 are those of four")
        return cls(int(match[1]), int(match[2]))
