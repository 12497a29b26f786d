"""Sums of the squares of what enters a weight, in sums.cpp: the same bits as numpy's."""

from __future__ import annotations

import ctypes as c
from concurrent.futures import Executor
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import native

_AT_LEAST: Final = 1 << 20  # values that are worth a thread


def squares(
    rows: NDArray[np.float32],
    columns: int,
    matrices: int = 1,
    matrix: NDArray[np.int32] | None = None,
    pool: Executor | None = None,
    threads: int = 1,
) -> NDArray[np.float32]:
    """The sums [matrices, columns] of the squares of rows [..., columns], whose columns lie side by side.

    `matrix` [rows] is the matrix that each row counts for, None: all for the only one. They are added up in
    f32, row after row, whatever the threads of the pool.
    """
    assert rows.strides[-1] == 4 and rows.dtype == np.float32
    sums = np.zeros((matrices, columns), np.float32)
    offsets = np.zeros(rows.shape[:-1], np.int64)
    for axis, (count, step) in enumerate(zip(rows.shape[:-1], rows.strides[:-1], strict=True)):
        offsets += (np.arange(count) * step).reshape([-1 if i == axis else 1 for i in range(offsets.ndim)])
    offsets = np.ascontiguousarray(offsets.reshape(-1))
    ids = None if matrix is None else np.ascontiguousarray(matrix, np.int32)
    add, count = _squares(), offsets.size

    def part(first: int, last: int) -> None:
        add(
            rows.ctypes.data,
            offsets.ctypes.data,
            None if ids is None else ids.ctypes.data,
            count,
            columns,
            first,
            last,
            sums.ctypes.data,
        )

    parts = max(1, min(threads, count * columns // _AT_LEAST)) if pool is not None else 1
    cuts = [columns * number // parts for number in range(parts + 1)]
    if pool is None or parts == 1:
        part(0, columns)
    else:
        list(pool.map(part, cuts[:-1], cuts[1:]))
    return sums


@cache
def _squares() -> c._NamedFuncPointer:
    function = native.load().quantmill_squares
    function.restype = None
    function.argtypes = [c.c_void_p] * 3 + [c.c_int64] * 4 + [c.c_void_p]
    return function
