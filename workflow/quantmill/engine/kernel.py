"""Rounding with error feedback, in feedback.cpp: it has a variant for each instruction set of a processor."""

from __future__ import annotations

import ctypes as c
import threading
from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import native

Floats = NDArray[np.float32]

_ALIGNED: Final = 64
_HALVES: Final = 128  # HALVES of entries.h

EIGHT: Final = 8
"""Neighbouring columns that are rounded at once, or in two halves, where they are entries of a codebook."""


class Grids(NamedTuple):
    """The values that rows of weights may have: offset + step * code, or offset + step * values[code].

    `steps` and `offsets` [groups, rows] of the blocks of a row; codes are below `levels`; `values` [levels],
    ascending.
    """

    steps: Floats
    offsets: Floats
    levels: int
    values: Floats | None = None


def feed_back(
    weights: Floats,
    order: NDArray[np.int32],
    panels: Floats,
    grids: Grids,
    *,
    others: Floats | None = None,
    targets: Floats | None = None,
    variant: int = -1,
) -> NDArray[np.uint8]:
    """The codes [rows, columns] of weights [rows, columns], each column's error fed back into the following.

    `order` [columns] is the order of the columns, `panels` the factor as from `panels_of`. With `others`
    (`all_panels_of` the matrix) every column is rounded once more, for the errors of all others; `targets`
    [rows, columns], without them, is filled with what was rounded. `variant` is of the instruction
    set: -1 the best that this processor has, 0 that of every processor.
    """
    lib, (rows, columns) = _lib(), weights.shape
    groups = len(grids.steps)
    lanes = lib.quantmill_rows()
    stride = -(-rows // lanes) * lanes
    padded = np.zeros((2, groups, stride), np.float32)
    padded[0, :, :rows], padded[1, :, :rows] = grids.steps, grids.offsets
    values = grids.values
    thresholds = None if values is None else (values[1:] + values[:-1]) / np.float32(2)
    codes = np.empty((rows, columns), np.uint8)
    lib.quantmill_feed_back(
        _pointer(weights),
        rows,
        columns,
        _pointer(order),
        columns // groups,
        _pointer(padded[0]),
        _pointer(padded[1]),
        stride,
        grids.levels,
        _pointer(values),
        _pointer(thresholds),
        _pointer(panels),
        _pointer(others),
        _pointer(codes),
        _pointer(targets),
        _scratch(lib.quantmill_scratch(columns)),
        variant,
    )
    return codes


class Codebook(c.Structure):
    """Entries [n, length] of magnitudes in the form of the kernel: ascending, the smallest magnitudes first.

    With `even`, of eight weights an even number are negative.
    """

    _fields_ = (  # as in feedback.cpp
        *((name, c.c_int64) for name in ("length", "even", "first_count", "second_count")),
        *((name, c.c_void_p) for name in ("firsts", "seconds", "starts", "first_of", "second_of")),
    )

    def __init__(self, entries: Floats, even: bool) -> None:
        half = entries.shape[1] // 2
        first, first_of = np.unique(entries[:, :half], axis=0, return_inverse=True)
        second, second_of = np.unique(entries[:, half:], axis=0, return_inverse=True)
        assert len(second) <= _HALVES
        starts = np.searchsorted(first_of.reshape(-1), np.arange(len(first) + 1))
        numbers = [part.reshape(-1).astype(np.int32) for part in (starts, first_of, second_of)]
        self._kept = [np.ascontiguousarray(part) for part in (first, second, *numbers)]
        super().__init__(
            entries.shape[1], even, len(first), len(second), *(_pointer(part) for part in self._kept)
        )


def feed_back_entries(
    weights: Floats,
    steps: Floats,
    book: Codebook,
    order: NDArray[np.int32],
    panels: Floats,
    others: Floats | None,
    squares: tuple[Floats, Floats],
    *,
    variant: int = -1,
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """The entries [rows, columns / length] and signs [rows, columns / 8], a bit a weight, of weights.

    `steps` [groups, rows] are of the blocks of a row. `order` has eight neighbours together; `panels` and
    `others`, with their `squares`, are of the factor and of the matrix, from `panels_and_squares_of`.
    """
    lib, (rows, columns) = _lib(), weights.shape
    stride = -(-rows // lib.quantmill_rows()) * lib.quantmill_rows()
    padded = np.zeros((len(steps), stride), np.float32)
    padded[:, :rows] = steps
    entries = np.empty((rows, columns // book.length), np.uint16)
    signs = np.empty((rows, columns // EIGHT), np.uint8)
    lib.quantmill_feed_back_entries(
        _pointer(weights),
        rows,
        columns,
        _pointer(order),
        columns // len(steps),
        _pointer(padded),
        stride,
        c.byref(book),
        _pointer(panels),
        _pointer(squares[0]),
        _pointer(others),
        _pointer(squares[1]),
        _pointer(entries),
        _pointer(signs),
        _scratch(lib.quantmill_scratch(columns)),
        variant,
    )
    return entries, signs


def panels_and_squares_of(matrix: Floats, length: int, *, factor: bool = False) -> tuple[Floats, Floats]:
    """What `feed_back_entries` takes of a matrix [columns, columns] in the order of rounding, or of its upper
    factor: panels, and the costs [columns / length, length, length] by which an entry is chosen.

    The panels give each `length` columns the best values that they could have for the errors of the others.
    """
    columns = len(matrix)
    parts = matrix.reshape(columns, -1, length).transpose(1, 0, 2)
    number = np.arange(len(parts))
    own = parts.reshape(len(parts), -1, length, length)[number, number].astype(np.float64)
    scaled = parts @ np.linalg.inv(own).astype(np.float32)
    scaled.reshape(len(parts), -1, length, length)[number, number] = 0
    panels = scaled.reshape(-1, EIGHT // length, columns, length).transpose(0, 2, 1, 3)
    squares = own @ own.transpose(0, 2, 1) if factor else own
    return np.ascontiguousarray(panels).reshape(-1, columns, EIGHT), squares.astype(np.float32)


def all_panels_of(reversed_matrix: Floats) -> Floats:
    """A symmetric matrix [columns, columns] as `others`; it is given from its last row and column to its
    first, as `panels_of` takes its factor. `columns` is a multiple of 8.
    """
    return _panels(_lib().quantmill_all_panels, reversed_matrix)


def panels_of(lower: Floats) -> Floats:
    """The factor in the form of the kernel, of the lower Cholesky factor [columns, columns] of the reversed
    matrix; `columns` is a multiple of 8.
    """
    return _panels(_lib().quantmill_panels, lower)


def _panels(fill: Callable[[c.c_void_p, int, c.c_void_p], None], matrix: Floats) -> Floats:
    columns, width = len(matrix), _lib().quantmill_panel()
    panels = np.empty((columns // width, columns, width), np.float32)
    fill(_pointer(matrix), columns, _pointer(panels))
    return panels


def _pointer(array: NDArray[np.generic] | None) -> c.c_void_p:
    assert array is None or (array.flags.c_contiguous and array.dtype.itemsize <= 4)
    return c.c_void_p(None if array is None else array.ctypes.data)


_thread = threading.local()


def _scratch(size: int) -> c.c_void_p:
    """Scratch memory of this thread's own, kept and aligned."""
    buffer: NDArray[np.uint8] | None = getattr(_thread, "buffer", None)
    if buffer is None or buffer.size < size + _ALIGNED:
        buffer = _thread.buffer = np.empty(size + _ALIGNED, np.uint8)
    return c.c_void_p(-(-buffer.ctypes.data // _ALIGNED) * _ALIGNED)


@cache
def _lib() -> c.CDLL:
    lib = native.load()
    lib.quantmill_rows.restype = lib.quantmill_panel.restype = c.c_int64
    lib.quantmill_scratch.restype, lib.quantmill_scratch.argtypes = c.c_int64, [c.c_int64]
    lib.quantmill_panels.restype = lib.quantmill_all_panels.restype = lib.quantmill_feed_back.restype = None
    lib.quantmill_feed_back_entries.restype = None
    lib.quantmill_feed_back_entries.argtypes = [
        *(c.c_void_p, c.c_int64, c.c_int64, c.c_void_p, c.c_int64, c.c_void_p, c.c_int64),
        *(c.c_void_p for _ in range(7)),
        *(c.c_void_p, c.c_int64),
    ]
    lib.quantmill_panels.argtypes = lib.quantmill_all_panels.argtypes = [c.c_void_p, c.c_int64, c.c_void_p]
    lib.quantmill_feed_back.argtypes = [
        *(c.c_void_p, c.c_int64, c.c_int64, c.c_void_p, c.c_int64),
        *(c.c_void_p, c.c_void_p, c.c_int64, c.c_int64, c.c_void_p, c.c_void_p),
        *(c.c_void_p, c.c_void_p, c.c_void_p, c.c_void_p, c.c_void_p, c.c_int64),
    ]
    return lib
