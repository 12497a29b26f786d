"""Rounding with error feedback: what one weight's rounding changes, the weights after it make up for.

With H the second moments of a weight's input, rounding w to q costs the output (w - q) H (w - q)ᵀ. Factor
H = M D Mᵀ with M unit upper triangular, D diagonal: the cost is the sum over columns k of D_k times the
square of e_k + Σ_{i<k} e_i M_ik, with e = w - q. So column k is rounded from w_k + Σ_{i<k} e_i M_ik. This
is GPTQ (Frantar et al., 2022) in the form of LDLQ (Chee et al., 2023, who prove the two the same): the
factor of H itself, no inverse.

The scales and minima of every block are ggml's own, found for the weights as they are with the diagonal as
importance. Columns go in the order of descending diagonal: the columns that matter most are rounded
while all others can still make up for them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import kernel
from quantmill.engine.ggml import Conversion
from quantmill.errors import QuantmillError
from quantmill.measure.moments import Moments
from quantmill.measure.outer import Second
from quantmill.quantize.grids import GRIDS, Bytes, Floats, packed, steps_and_offsets

DAMPING: Final = 0.01
"""Added to the diagonal, in parts of its mean."""

SHRINKAGE: Final = 0.1
"""The part that the off-diagonal moments are reduced by: what one text correlates, another may not."""


VERSION: Final = 1
"""Of the units of the store: raised where the same moments give other bytes."""

_ROWS: Final = 64  # the kernel takes so many at a time
_KEPT: Final = 2  # inputs whose factors are kept: gate and up share one, as do q, k and v


class Rounding(Protocol):
    """What is rounded: a weight of the source, and the type that it gets."""

    @property
    def name(self) -> str: ...
    @property
    def source_type(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Factor:
    """The order of the columns [columns], and M in the form of the kernel."""

    order: NDArray[np.int32]
    panels: Floats


def factor(moments: Floats, shrinkage: float = SHRINKAGE, damping: float = DAMPING) -> Factor:
    """Of second moments [columns, columns]. QuantmillError where they are not finite or not positive."""
    diagonal = np.diagonal(moments).copy()
    order = np.argsort(-diagonal, kind="stable").astype(np.int32)
    backwards = order[::-1]
    matrix = moments[np.ix_(backwards, backwards)]
    matrix *= np.float32(1 - shrinkage)
    mean = float(diagonal.mean(dtype=np.float64)) or 1.0  # where nothing was ever seen nothing is fed back
    np.fill_diagonal(matrix, diagonal[backwards] + np.float32(damping * mean))
    try:
        lower = np.linalg.cholesky(matrix)
        positive = bool(np.isfinite(lower.sum()))  # LAPACK does not stop at what is no number
    except np.linalg.LinAlgError:
        positive = False
    if not positive:
        raise QuantmillError("its second moments are no positive definite matrix", cure="measure them again")
    return Factor(order, kernel.panels_of(lower))


class Feedback:
    """Rounds tensors with the moments of their inputs; the factors of the last inputs are kept.

    `pool` are the threads that work; the callers wait.
    """

    def __init__(self, moments: Moments, pool: Executor, threads: int) -> None:
        self._moments, self._pool, self._threads = moments, pool, threads
        self._factors: dict[str, Future[list[list[Factor]]]] = {}
        self._lock = threading.Lock()

    def round(self, weight: Bytes, data: Bytes, of: Rounding) -> Bytes:
        """A weight's data rounded into `data`, which ggml quantized of it. QuantmillError as of `factor`."""
        columns, rows = of.shape[:2]
        matrices = math.prod(of.shape[2:])
        factors = self._factors_of(of.name, columns)
        parts = zip(np.split(weight, matrices), np.split(data, matrices), factors, strict=True)
        return np.concatenate([self._matrix(part, made, rows, blocks, of) for part, made, blocks in parts])

    def means(self, name: str) -> Iterator[Floats]:
        """The mean second moments [blocks, width, width] of each matrix of a weight's input."""
        return self._moments.of(name).mean()

    def _matrix(self, weight: Bytes, data: Bytes, rows: int, blocks: Sequence[Factor], of: Rounding) -> Bytes:
        shape = (of.shape[0], rows, 1)
        values = Conversion(self._pool, self._threads, weight, of.source_type, "f32", shape, None).result()
        weights, made = values.view(np.float32).reshape(rows, -1), data.reshape(rows, -1)
        run = max(_ROWS, -(-rows // (4 * self._threads) // _ROWS) * _ROWS)
        starts = [slice(first, min(first + run, rows)) for first in range(0, rows, run)]

        def rounded_rows(part: slice) -> Bytes:
            return rounded(weights[part], made[part].reshape(-1), of.type, blocks)

        return np.concatenate(list(self._pool.map(rounded_rows, starts)))

    def _factors_of(self, name: str, columns: int) -> list[list[Factor]]:
        """The factors of a weight's input: of each matrix those of its blocks."""
        key = self._moments.key(name)
        with self._lock:
            known = self._factors.pop(key, None)
            future = self._factors[key] = known or Future()  # the last in the order of the dict
            for old in list(self._factors)[:-_KEPT]:
                del self._factors[old]
        if known is None:
            try:
                future.set_result(self._made(self._moments.of(name)))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _made(self, second: Second) -> list[list[Factor]]:
        """As many matrices at once as there are threads: each is in memory as often as its factor needs."""
        means = second.mean()
        made: list[list[Factor]] = []
        while some := list(islice(means, self._threads)):
            made += self._pool.map(lambda blocks: [factor(block) for block in blocks], some)
        return made


def rounded(weights: Floats, data: Bytes, type_name: str, blocks: Sequence[Factor]) -> Bytes:
    """Weights [rows, columns] rounded into the blocks of `data`, which ggml quantized of them.

    `blocks` are the factors of the diagonal blocks of their input's moments, in order.
    """
    grid, (rows, columns) = GRIDS[type_name], weights.shape
    steps, offsets = steps_and_offsets(data, type_name, rows)
    codes = np.empty((rows, columns), np.uint8)
    width, start = columns // len(blocks), 0
    for made in blocks:
        own, groups = slice(start, start + width), slice(start // grid.group, (start + width) // grid.group)
        codes[:, own] = kernel.feed_back(
            np.ascontiguousarray(weights[:, own]),
            made.order,
            made.panels,
            steps[groups],
            offsets[groups],
            grid.levels,
            grid.values,
        )
        start += width
    return packed(data, type_name, codes)
