"""Σ x xᵀ of the inputs of weights, through the eval callback: the second moments that rounding needs.

An input is observed as for an importance matrix (`measure.collect`): of f32, with at least 16 rows, summed
once for all weights that share it; of experts each row counts for the expert that it is sent to. The
diagonal of the sums is the importance matrix.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.graph import MatMul
from quantmill.formats.imatrix import LEAST_ROWS

Floats = NDArray[np.float32]

WIDEST: Final = 8192
"""The most columns of a block. The moments of a wider input are kept in several diagonal blocks."""

HEADS: Final = ("output.weight", "token_embd.weight")
"""The output head, and its name where it is the embeddings."""

_TILE: Final = 512  # columns: a tile of sums stays in a core's cache
_ALIGNED: Final = 256  # elements of a block of the k-quants, which no block of moments cuts


def blocks_of(columns: int) -> int:
    """In how many equal diagonal blocks the moments of an input are kept; 1 where it cannot be cut."""
    units = columns // _ALIGNED if columns % _ALIGNED == 0 else 1
    return next(
        (count for count in range(1, units + 1) if units % count == 0 and columns // count <= WIDEST), 1
    )


def means(sums: Floats, counts: NDArray[np.int64]) -> Iterator[Floats]:
    """The means [blocks, width, width] of sums [matrices, blocks, width, width] over rows [matrices].

    An expert's own tokens count beside `columns` tokens that are as those of all experts are on the
    average: with few tokens of its own it leans on the others.
    """
    if len(counts) == 1:
        yield sums[0] / np.float32(max(1, counts[0]))
        return
    blocks, width = sums.shape[1:3]
    others = np.float32(blocks * width)
    pooled = sums.sum(axis=0) / np.float32(max(1, counts.sum()))
    for own, count in zip(sums, counts, strict=True):
        yield (own + others * pooled) / (np.float32(count) + others)


@dataclass(frozen=True)
class Second:
    """Σ x xᵀ f32 [matrices, blocks, width, width] of an input, and the rows behind it [matrices]."""

    sums: Floats
    counts: NDArray[np.int64]

    @classmethod
    def zeros(cls, matrices: int, columns: int) -> Second:
        """Of nothing yet."""
        blocks = blocks_of(columns)
        width = columns // blocks
        return cls(np.zeros((matrices, blocks, width, width), np.float32), np.zeros(matrices, np.int64))

    def mean(self) -> Iterator[Floats]:
        """The mean x xᵀ [blocks, width, width] of each matrix in turn; see `means`."""
        return means(self.sums, self.counts)

    def mirror(self) -> None:
        """Make the sums whole, of which the lower triangles are known."""
        width = self.sums.shape[2]
        _mirror(self.sums.reshape(-1, width, width))

    @property
    def finite(self) -> bool:
        """Whether all sums are."""
        return bool(np.isfinite(self.sums).all())

    def to_bytes(self) -> bytes:
        """As a unit of the store: a line of JSON, the counts, then the lower triangles' rows."""
        from scipy.linalg.lapack import strttp

        matrices, blocks, width, _ = self.sums.shape
        head = json.dumps([matrices, blocks, width]).encode()
        flat = self.sums.reshape(-1, width, width)
        # LAPACK goes by columns: what it packs of an upper triangle are our lower triangle's rows.
        triangles = [strttp(block.T, uplo=b"U")[0].astype("<f4").tobytes() for block in flat]
        return b"".join([head, b"\n", self.counts.astype("<i8").tobytes(), *triangles])

    @staticmethod
    def counts_of(data: bytes | memoryview) -> list[int]:
        """The rows behind each matrix of a unit of the store, without its sums."""
        head, _, _ = bytes(data[:256]).partition(b"\n")
        matrices, start = json.loads(head)[0], len(head) + 1
        return list(np.frombuffer(data[start : start + 8 * matrices], "<i8").tolist())

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Second:
        """Read a unit of the store. ValueError where it is none."""
        from scipy.linalg.lapack import stpttr

        view = memoryview(data)
        head, _, _ = bytes(view[:256]).partition(b"\n")
        matrices, blocks, width = json.loads(head)
        start = len(head) + 1
        counts = np.frombuffer(view[start : start + 8 * matrices], "<i8").astype(np.int64)
        packed = np.frombuffer(view[start + 8 * matrices :], "<f4").reshape(matrices * blocks, -1)
        sums = np.empty((matrices * blocks, width, width), np.float32)
        for block, triangle in zip(sums, packed, strict=True):
            block[:] = stpttr(width, triangle, uplo=b"U")[0].T
        _mirror(sums)
        return cls(sums.reshape(matrices, blocks, width, width), counts)


@dataclass(frozen=True)
class Input:
    """An input of the model's graph: the first of the weights that share it, all of them, and its size."""

    name: str
    weights: list[str]
    columns: int
    matrices: int

    @property
    def bytes(self) -> int:
        """What its sums take in memory."""
        return 4 * self.matrices * self.columns**2 // blocks_of(self.columns)


def wanted(node: MatMul) -> bool:
    """Whether moments of a multiplication's input are kept: as of an imatrix, and of the head's."""
    if node.indirect:
        return True
    observed = node.weight.startswith("blk.") or node.weight in HEADS
    return observed and node.input_is_f32 and node.input_shape[1] >= LEAST_ROWS


@dataclass
class Scan:
    """An observer that computes nothing: which inputs a graph has, in its order."""

    inputs: dict[str, Input] = field(default_factory=dict)
    _seen: dict[tuple[int, ...], str] = field(default_factory=dict)

    def __call__(self, node: MatMul) -> bool:
        """See `MatMul`."""
        if node.ask and wanted(node):
            name = self._seen.setdefault(node.input_identity, node.weight)
            if name == node.weight:
                matrices = node.matrices if node.indirect else 1
                self.inputs.setdefault(name, Input(name, [], node.input_shape[0], matrices))
            if node.weight not in self.inputs[name].weights:
                self.inputs[name].weights.append(node.weight)
        return not node.ask


class Outer:
    """An observer that sums up these inputs; a graph ends where the last of them is."""

    def __init__(self, inputs: Iterable[Input], pool: Executor) -> None:
        self.sums = {one.name: Second.zeros(one.matrices, one.columns) for one in inputs}
        self._last = next(reversed(self.sums))
        self._pool = pool

    def __call__(self, node: MatMul) -> bool:
        """See `MatMul`."""
        name = node.weight
        if node.ask:
            return name in self.sums and wanted(node)
        second, values = self.sums[name], node.input()
        if node.indirect:
            self._add_experts(second, values[0], node.experts())
        else:
            rows = values.reshape(-1, values.shape[3])
            second.counts[0] += len(rows)
            list(
                self._pool.map(
                    lambda tile: add_tile(second.sums[0, tile[0]], rows, rows, tile), tiles(second)
                )
            )
        return name != self._last

    def _add_experts(self, second: Second, values: Floats, experts: NDArray[np.int32]) -> None:
        """`values` [tokens, experts used or 1, columns]; each row counts for the expert it is sent to."""

        def add(expert: int) -> None:
            tokens, slots = np.nonzero(experts == expert)
            rows = values[tokens, slots % values.shape[1]]
            second.counts[expert] += len(rows)
            for tile in tiles(second):
                add_tile(second.sums[expert, tile[0]], rows, rows, tile)

        list(self._pool.map(add, np.unique(experts).tolist()))

    def state(self, chunks: int) -> bytes:
        """See `state_of`."""
        return state_of(self._arrays(), chunks)

    def resume(self, state: bytes | memoryview | None) -> int:
        """See `resume_from`."""
        return resume_from(self._arrays(), state)

    def _arrays(self) -> Iterator[NDArray[np.generic]]:
        for second in self.sums.values():
            yield from (second.sums, second.counts)

    def units(self) -> dict[str, Second]:
        """The sums, whole: so far their lower tiles were added to."""
        for second in self.sums.values():
            second.mirror()
        return self.sums


def state_of(arrays: Iterable[NDArray[np.generic]], chunks: int) -> bytes:
    """The sums of a pass after so many chunks, for `resume_from`."""
    return b"".join([chunks.to_bytes(8, "little"), *(array.tobytes() for array in arrays)])


def resume_from(arrays: Iterable[NDArray[np.generic]], state: bytes | memoryview | None) -> int:
    """Go on from a state of the same arrays; how many chunks it is of (0 where there is none)."""
    if not state:
        return 0
    view, start = memoryview(state), 8
    for array in arrays:
        array.reshape(-1)[:] = np.frombuffer(view[start : start + array.nbytes], array.dtype)
        start += array.nbytes
    return int.from_bytes(view[:8], "little")


def _mirror(blocks: Floats) -> None:
    """Symmetric blocks [n, width, width] of which the lower triangles are known, whole, tile by tile."""
    width = blocks.shape[1]
    upper = np.triu(np.ones((_TILE, _TILE), bool), 1)
    for block in blocks:
        for start in range(0, width, _TILE):
            stop = min(start + _TILE, width)
            block[start:stop, stop:] = block[stop:, start:stop].T
            own, here = block[start:stop, start:stop], upper[: stop - start, : stop - start]
            np.copyto(own, own.T.copy(), where=here)


def tiles(second: Second, *, whole: bool = False) -> list[tuple[int, int, int]]:
    """(block, first row, first column) of the lower tiles, or of all; the same whatever the threads."""
    blocks, width = second.sums.shape[1:3]
    starts = range(0, width, _TILE)
    some = [(row, column) for row in starts for column in starts if whole or column <= row]
    return [(block, row, column) for block in range(blocks) for row, column in some]


def add_tile(sums: Floats, left: Floats, right: Floats, tile: tuple[int, int, int]) -> None:
    """Add a tile of leftᵀ right, of rows [., columns], to the sums of its block."""
    block, first, second = tile
    width = sums.shape[0]
    rows = left[:, block * width + first : block * width + min(first + _TILE, width)]
    columns = right[:, block * width + second : block * width + min(second + _TILE, width)]
    sums[first : first + rows.shape[1], second : second + columns.shape[1]] += rows.T @ columns
