"""Rounding with error feedback: what one weight's rounding changes, the weights after it make up for.

With H the second moments of a weight's input, rounding w to q costs the output (w - q) H (w - q)ᵀ. Factor
H = M D Mᵀ with M unit upper triangular, D diagonal: the cost is the sum over columns k of D_k times the
square of e_k + Σ_{i<k} e_i M_ik, with e = w - q. So column k is rounded from w_k + Σ_{i<k} e_i M_ik. This
is GPTQ (Frantar et al., 2022) in the form of LDLQ (Chee et al., 2023, who prove the two the same): the
factor of H itself, no inverse.

The scales and minima of every block are ggml's own, so the file is a stock one. Columns go in the order of
descending diagonal: the columns that matter most are rounded while all others can still make up for them.
Then every column is rounded once more, for the errors of all others (a sweep of coordinate descent; not at
types whose levels are many, where it gains nothing).

Types of few levels gain from a second search of scales: given what is rounded in place of the weights,
t_k = w_k + Σ_{i<k} e_i M_ik, the cost is Σ_k D_k (t_k - q_k)². That is what ggml's quantizers minimize, for
the weights t with the importance D. Not so where an entry of a codebook gives 4 or 8 neighbours their values:
it costs ggml's quantizers of these types microseconds a weight, and gains nothing.

Such neighbours are rounded at once, by the same cost: with H = M D Mᵀ in blocks of their size, to the entry q
that is nearest to their target t by (t - q) D_k (t - q)ᵀ.

Where the weights before it in its layer are quantized too, a weight's input is x̃ in place of x. The weights
W (I + Σ (x - x̃) x̃ᵀ (Σ x̃ x̃ᵀ + λI)⁻¹) give for x̃ what is nearest to W x (GPTAQ, Li et al., 2025). They are
rounded in place of W, by the second moments of x̃.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import kernel
from quantmill.engine.ggml import Conversion
from quantmill.errors import QuantmillError
from quantmill.measure.cross import Known
from quantmill.measure.moments import Moments
from quantmill.measure.outer import Input, Second
from quantmill.measure.shifts import Shifted
from quantmill.quantize import codebooks
from quantmill.quantize.codebooks import BOOKS
from quantmill.quantize.grids import GRIDS, packed, steps_and_offsets
from quantmill.quantize.layouts import Bytes, Floats

DAMPING: Final = 0.01
"""Added to the diagonal, in parts of its mean."""

SHRINKAGE: Final = 0.1
"""The part that the off-diagonal moments are reduced by: what one text correlates, another may not."""


RIDGE: Final = 0.05
"""λ of the corrected weights, in parts of the moments' mean diagonal."""

VERSION: Final = 2
"""Of the units of the store: raised where the same moments give other bytes."""

_COARSE: Final = 16  # levels, up to which the search of scales is worth repeating
_SWEPT: Final = 32  # levels, up to which a sweep gains: at q6_K and q8_0 it costs a third and gains nothing
_NOT_AGAIN: Final = "nvfp4"  # with per-tensor scales ggml's search lost .03 of the divergence's ratio
_ROWS: Final = 64  # the kernel takes so many at a time
_CORRECTED: Final = 256  # rows that are multiplied by a correction at a time
_KEPT: Final = 2  # inputs whose factors are kept: gate and up share one, as do q, k and v


T = TypeVar("T")


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
    """The order of the columns [columns], D by column [columns]; M and H in the form of the kernel, and the
    diagonal of the moments [columns].

    Where entries of a codebook give several columns their values, the kernel takes `squares` too. What is
    rounded are the weights plus the weights times the `correction` [columns, columns], where there is one.
    """

    order: NDArray[np.int32]
    importance: Floats
    panels: Floats
    others: Floats
    diagonal: Floats
    squares: tuple[Floats, Floats] | None = None
    correction: Floats | None = None


def memory_of(one: Input, threads: int, *, crossed: bool = False) -> int:
    """Bytes that rounding a weight with the moments of this input takes, beside the weight itself.

    The moments of all matrices, and of each thread's a copy, its factor and the forms of both for the kernel;
    with cross moments (`crossed`) these, and of each thread's the matrix that is solved and what it gives.
    """
    kept, worked = (2, 7) if crossed else (1, 4)
    return kept * one.bytes + worked * threads * one.bytes // one.matrices


def factor(
    moments: Floats, shrinkage: float = SHRINKAGE, damping: float = DAMPING, length: int = 1
) -> Factor:
    """Of second moments [columns, columns]. QuantmillError where they are not finite or not positive.

    `length` columns are rounded at once. Where they are several, eight neighbours go together in the order.
    """
    from scipy.linalg import lapack

    diagonal = np.diagonal(moments).copy()
    together = 1 if length == 1 else kernel.EIGHT
    groups = np.argsort(-diagonal.reshape(-1, together).sum(axis=1), kind="stable")
    order = (together * groups[:, None] + np.arange(together)).reshape(-1).astype(np.int32)
    backwards = order[::-1]
    matrix = moments.take(backwards, axis=0).take(backwards, axis=1)
    matrix *= np.float32(1 - shrinkage)
    mean = float(diagonal.mean(dtype=np.float64)) or 1.0  # where nothing was ever seen nothing is fed back
    np.fill_diagonal(matrix, diagonal[backwards] + np.float32(damping * mean))
    others = kernel.all_panels_of(matrix) if length == 1 else None
    # The matrix is symmetric: its transpose is in LAPACK's order. (numpy's own is six times slower.)
    upper, fault = lapack.spotrf(matrix.T, lower=0, clean=1, overwrite_a=others is not None)
    lower: Floats = upper.T
    positive = fault == 0 and bool(np.isfinite(lower.sum()))  # LAPACK does not stop at what is no number
    if not positive:
        raise QuantmillError("its second moments are no positive definite matrix", cure="measure them again")
    importance = np.empty_like(diagonal)
    importance[backwards] = np.diagonal(lower) ** 2
    if others is not None:
        return Factor(order, importance, kernel.panels_of(lower), others, diagonal)
    panels, squares = kernel.panels_and_squares_of(lower[::-1, ::-1], length, factor=True)
    others, other_squares = kernel.panels_and_squares_of(matrix[::-1, ::-1], length)
    return Factor(order, importance, panels, others, diagonal, (squares, other_squares))


def correction(moments: Floats, changes: Floats, ridge: float = RIDGE) -> Floats:
    """What corrects weights by their product with it, of the mean x̃ x̃ᵀ and (x - x̃) x̃ᵀ [columns, columns].

    QuantmillError where the moments are not finite or not positive.
    """
    from scipy.linalg import lapack

    matrix = moments.copy()
    mean = float(np.diagonal(matrix).mean(dtype=np.float64)) or 1.0
    matrix[np.diag_indices_from(matrix)] += np.float32(ridge * mean)
    upper, fault = lapack.spotrf(matrix.T, lower=0, overwrite_a=True)
    solved, _ = lapack.spotrs(upper, changes.T, lower=0)
    corrects: Floats = np.ascontiguousarray(solved.T)
    if fault != 0 or not np.isfinite(corrects.sum()):
        raise QuantmillError("its cross moments are no positive definite matrix", cure="measure them again")
    return corrects


class Feedback:
    """Rounds tensors with the moments of their inputs; the factors of the last inputs are kept.

    Tensors whose input has `cross` moments are rounded with these. `pool` are the threads that work; the
    callers wait.
    """

    def __init__(self, moments: Moments, pool: Executor, threads: int, cross: Known | None = None) -> None:
        self._moments, self._pool, self._threads = moments, pool, threads
        self._cross = cross
        self._factors: dict[tuple[str, int], Future[list[list[Factor]]]] = {}
        self._lock = threading.Lock()

    def round(
        self, weight: Bytes, nearest: Callable[[], Bytes], of: Rounding, scales: Floats | None = None
    ) -> Bytes:
        """A weight's data, rounded into what `nearest` gives: that which ggml quantized of it.

        Readers multiply it by `scales` [matrices], where it has per-tensor scales. QuantmillError as of
        `factor` and `correction`.
        """
        matrices = math.prod(of.shape[2:])
        factors = self._factors_of(of.name, of.type)
        by = np.ones(matrices, np.float32) if scales is None else scales
        # Where other weights are rounded in its place, what ggml makes of it is of no use.
        corrected = factors[0][0].correction is not None
        data = [None] * matrices if corrected else np.split(nearest(), matrices)
        parts = zip(np.split(weight, matrices), data, factors, by, strict=True)
        return np.concatenate(
            [self._matrix(part, made, blocks, of, scale) for part, made, blocks, scale in parts]
        )

    def means(self, name: str) -> Iterator[Floats]:
        """The mean second moments [blocks, width, width] of each matrix of a weight's input."""
        return self._moments.of(name).mean()

    def _matrix(
        self, weight: Bytes, data: Bytes | None, blocks: Sequence[Factor], of: Rounding, scale: np.float32
    ) -> Bytes:
        columns, rows = of.shape[:2]
        values = self._converted(weight, of.source_type, "f32", (columns, rows, 1), None)
        weights = values.view(np.float32).reshape(rows, -1)
        if scale != 1:
            weights = weights / scale
        if data is None:
            weights = self._corrected(
                weights, [one.correction for one in blocks if one.correction is not None]
            )
            made = self._searched(weights, of.type, np.concatenate([block.diagonal for block in blocks]))
        else:
            made = data.reshape(rows, -1)
        run = max(_ROWS, -(-rows // (4 * self._threads) // _ROWS) * _ROWS)
        runs = [slice(first, min(first + run, rows)) for first in range(0, rows, run)]

        def of_runs(work: Callable[[Floats, Bytes], NDArray[Any]]) -> NDArray[Any]:
            return np.concatenate(list(self._pool.map(lambda part: work(weights[part], made[part]), runs)))

        if of.type in GRIDS and GRIDS[of.type].levels <= _COARSE and of.type != _NOT_AGAIN:
            wanted = of_runs(lambda some, theirs: targets(some, theirs, of.type, blocks))
            made = self._searched(wanted, of.type, np.concatenate([block.importance for block in blocks]))
        return of_runs(lambda some, theirs: rounded(some, theirs, of.type, blocks))

    def _corrected(self, weights: Floats, corrections: Sequence[Floats]) -> Floats:
        """By runs of rows that do not depend on the threads: so does no sum."""

        def of_rows(first: int) -> Floats:
            rows = weights[first : first + _CORRECTED]
            parts = zip(np.split(rows, len(corrections), axis=1), corrections, strict=True)
            return rows + np.concatenate([part @ by for part, by in parts], axis=1)

        return np.concatenate(list(self._pool.map(of_rows, range(0, len(weights), _CORRECTED))))

    def _searched(self, weights: Floats, type_name: str, importance: Floats) -> Bytes:
        """What ggml's search makes of weights [rows, columns], with the importance [columns]."""
        rows, columns = weights.shape
        data = np.ascontiguousarray(weights).view(np.uint8).reshape(-1)
        made = self._converted(data, "f32", type_name, (columns, rows, 1), importance[None])
        return made.reshape(rows, -1)

    def _converted(
        self, data: Bytes, before: str, after: str, shape: tuple[int, int, int], importance: Floats | None
    ) -> Bytes:
        return Conversion(self._pool, self._threads, data, before, after, shape, importance).result()

    def _factors_of(self, name: str, type_name: str) -> list[list[Factor]]:
        """The factors of a weight's input: of each matrix those of its blocks."""
        length = codebooks.codebook(type_name).length if type_name in BOOKS else 1
        crossed = self._cross if self._cross is not None and name in self._cross else None
        key = (crossed or self._moments).key(name), length
        with self._lock:
            known = self._factors.pop(key, None)
            future = self._factors[key] = known or Future()  # the last in the order of the dict
            for old in list(self._factors)[:-_KEPT]:
                del self._factors[old]
        if known is None:
            try:
                made = (
                    self._made(self._moments.of(name), length)
                    if crossed is None
                    else self._made_of_both(crossed.of(name), length)
                )
                future.set_result(made)
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _made(self, second: Second, length: int) -> list[list[Factor]]:
        return self._of_matrices(
            second.mean(), lambda blocks: [factor(block, length=length) for block in blocks]
        )

    def _made_of_both(self, shifted: Shifted, length: int) -> list[list[Factor]]:
        """Of an input whose weights are corrected."""

        def of_matrix(both: tuple[Floats, Floats]) -> list[Factor]:
            return [
                replace(factor(moments, length=length), correction=correction(moments, changes))
                for moments, changes in zip(*both, strict=True)
            ]

        return self._of_matrices(shifted.mean(), of_matrix)

    def _of_matrices(self, means: Iterator[T], of_matrix: Callable[[T], list[Factor]]) -> list[list[Factor]]:
        """As many matrices at once as there are threads: each is in memory as often as its factor needs."""
        made: list[list[Factor]] = []
        while some := list(islice(means, self._threads)):
            made += self._pool.map(of_matrix, some)
        return made


def rounded(weights: Floats, data: Bytes, type_name: str, blocks: Sequence[Factor]) -> Bytes:
    """Weights [rows, columns] rounded into the blocks of `data`, which ggml quantized of them.

    `blocks` are the factors of the diagonal blocks of their input's moments, in order.
    """
    if type_name in BOOKS:
        return _rounded_by_entries(weights, data, type_name, blocks)
    swept = GRIDS[type_name].levels <= _SWEPT
    codes = [
        kernel.feed_back(part, made.order, made.panels, grids, others=made.others if swept else None)
        for part, grids, made in _blocks(weights, data, type_name, blocks)
    ]
    return packed(data, type_name, np.concatenate(codes, axis=1))


def _rounded_by_entries(weights: Floats, data: Bytes, type_name: str, blocks: Sequence[Factor]) -> Bytes:
    steps, book = codebooks.steps(data, type_name, len(weights)), codebooks.codebook(type_name)
    parts = zip(np.split(weights, len(blocks), axis=1), np.split(steps, len(blocks)), blocks, strict=True)
    made = []
    for part, own, of in parts:
        assert of.squares is not None
        columns = np.ascontiguousarray(part)
        made.append(kernel.feed_back_entries(columns, own, book, of.order, of.panels, of.others, of.squares))
    entries, signs = (np.concatenate(each, axis=1) for each in zip(*made, strict=True))
    return codebooks.packed(data, type_name, entries, signs)


def targets(weights: Floats, data: Bytes, type_name: str, blocks: Sequence[Factor]) -> Floats:
    """What is rounded in place of the weights [rows, columns] once errors are fed back: f32, of their shape.

    The arguments are those of `rounded`.
    """
    parts = []
    for part, grids, made in _blocks(weights, data, type_name, blocks):
        parts.append(np.empty_like(part))
        kernel.feed_back(part, made.order, made.panels, grids, targets=parts[-1])
    return np.concatenate(parts, axis=1)


def _blocks(
    weights: Floats, data: Bytes, type_name: str, blocks: Sequence[Factor]
) -> Iterator[tuple[Floats, kernel.Grids, Factor]]:
    """For each diagonal block its columns of the weights, their grids, and its factor."""
    grid, (rows, columns) = GRIDS[type_name], weights.shape
    steps, offsets = steps_and_offsets(data, type_name, rows)
    width = columns // len(blocks)
    for number, made in enumerate(blocks):
        first, last = number * width, (number + 1) * width
        groups = slice(first // grid.group, last // grid.group)
        grids = kernel.Grids(steps[groups], offsets[groups], grid.levels, grid.values)
        yield np.ascontiguousarray(weights[:, first:last]), grids, made
