"""Inputs of quantized weights beside those of the original, through the eval callback of either model.

An input x̃ is summed up as x̃ x̃ᵀ and (x - x̃) x̃ᵀ, with the x that the original has for the same token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.graph import MatMul
from quantmill.measure.outer import (
    Floats,
    Input,
    Second,
    add_tile,
    means,
    resume_from,
    state_of,
    tiles,
    wanted,
)


@dataclass(frozen=True)
class Shifted:
    """An input x̃ of quantized weights, of x: its second moments, and Σ (x - x̃) x̃ᵀ f32 [matrices, blocks,
    width, width].
    """

    second: Second
    changes: Floats

    @classmethod
    def zeros(cls, one: Input) -> Shifted:
        """Of nothing yet."""
        second = Second.zeros(one.matrices, one.columns)
        return cls(second, np.zeros_like(second.sums))

    def mean(self) -> Iterator[tuple[Floats, Floats]]:
        """The means of x̃ x̃ᵀ and of (x - x̃) x̃ᵀ [blocks, width, width], of each matrix in turn."""
        return zip(self.second.mean(), means(self.changes, self.second.counts), strict=True)

    @property
    def finite(self) -> bool:
        """Whether all sums are."""
        return self.second.finite and bool(np.isfinite(self.changes).all())

    @property
    def counts(self) -> NDArray[np.int64]:
        """The rows behind each matrix."""
        return self.second.counts

    @staticmethod
    def counts_of(data: bytes | memoryview) -> list[int]:
        """The rows behind each matrix of a unit of the store, without its sums."""
        return Second.counts_of(memoryview(data)[8:])

    def to_bytes(self) -> bytes:
        """As a unit of the store: the length of the second moments' unit, that unit, the changes."""
        second = self.second.to_bytes()
        return b"".join([len(second).to_bytes(8, "little"), second, self.changes.astype("<f4").tobytes()])

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Shifted:
        """Read a unit of the store. ValueError where it is none."""
        view = memoryview(data)
        start = 8 + int.from_bytes(view[:8], "little")
        second = Second.from_bytes(view[8:start])
        changes = np.frombuffer(view[start:], "<f4").astype(np.float32)
        return cls(second, changes.reshape(second.sums.shape))


class Seen(NamedTuple):
    """An input as it was seen in one batch: the node that makes it, its values, and where the weight has
    experts those that each row was sent to [tokens, experts used].
    """

    node: str
    values: Floats
    experts: NDArray[np.int32] | None

    def rows(self) -> Floats:
        """The rows [., columns] of an input without experts."""
        return self.values.reshape(-1, self.values.shape[-1])

    def of_expert(self, tokens: NDArray[np.int64], slots: NDArray[np.int64]) -> Floats:
        """The rows of these tokens, each that of one of the experts it was sent to."""
        return self.values[0][tokens, slots % self.values.shape[2]]


class Originals:
    """An observer of the source: keeps these inputs of one batch."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.seen: dict[str, Seen] = {}
        self._names, self._last = {one.name for one in inputs}, inputs[-1].name

    def __call__(self, node: MatMul) -> bool:
        """See `MatMul`."""
        name = node.weight
        if node.ask:
            return name in self._names and wanted(node)
        experts = node.experts().copy() if node.indirect else None
        self.seen[name] = Seen(node.input_name, node.input().copy(), experts)
        return name != self._last


class Shifts:
    """An observer of the quantized model: sums up the inputs `late`, beside those that the source had.

    `first` are the inputs that are replaced by the source's.
    """

    def __init__(
        self, late: Sequence[Input], first: Iterable[Input], originals: Originals, pool: Executor
    ) -> None:
        self.sums = {one.name: Shifted.zeros(one) for one in late}
        self.replaced: set[str] = set()
        self._first = [one.name for one in first]
        self._originals, self._pool, self._last = originals.seen, pool, late[-1].name

    def values(self, node: str) -> Floats | None:
        """The values that a node gets from the source; None where it keeps its own."""
        same = [
            name for name in self._first if name in self._originals and self._originals[name].node == node
        ]
        self.replaced.update(same)
        return self._originals[same[0]].values if same else None

    def __call__(self, node: MatMul) -> bool:
        """See `MatMul`."""
        name = node.weight
        if node.ask:
            return name in self.sums and wanted(node)
        into, original = self.sums[name], self._originals[name]
        own = Seen("", node.input(), node.experts() if node.indirect else None)
        for matrix, before, after in _pairs(original, own):
            into.second.counts[matrix] += len(after)
            self._add(into, matrix, before - after, after)
        return name != self._last

    def _add(self, into: Shifted, matrix: int, changes: Floats, rows: Floats) -> None:
        lower, every = tiles(into.second), tiles(into.second, whole=True)
        list(
            self._pool.map(lambda tile: add_tile(into.second.sums[matrix, tile[0]], rows, rows, tile), lower)
        )
        list(self._pool.map(lambda tile: add_tile(into.changes[matrix, tile[0]], changes, rows, tile), every))

    def state(self, chunks: int) -> bytes:
        """See `state_of`."""
        return state_of(self._arrays(), chunks)

    def resume(self, state: bytes | memoryview | None) -> int:
        """See `resume_from`."""
        return resume_from(self._arrays(), state)

    def _arrays(self) -> Iterator[NDArray[np.generic]]:
        for sums in self.sums.values():
            yield from (sums.second.sums, sums.second.counts, sums.changes)

    def units(self) -> dict[str, Shifted]:
        """The sums, whole."""
        for sums in self.sums.values():
            sums.second.mirror()
        return self.sums


def _pairs(original: Seen, own: Seen) -> Iterator[tuple[int, Floats, Floats]]:
    """Of each matrix the rows that both models gave it [rows, columns], the original's and the quantized's.

    A router may send a token to another expert once it is quantized: such a row has no counterpart.
    """
    if original.experts is None or own.experts is None:
        yield 0, original.rows(), own.rows()
        return
    for expert in np.unique(own.experts).tolist():
        tokens, slots = np.nonzero(own.experts == expert)
        theirs, their_slots = np.nonzero(original.experts == expert)
        _, here, there = np.intersect1d(tokens, theirs, assume_unique=True, return_indices=True)
        if len(here):
            after = own.of_expert(tokens[here], slots[here])
            yield expert, original.of_expert(theirs[there], their_slots[there]), after
