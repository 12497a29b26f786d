"""A tensor whose values lie on the grid of a type, as that type: packed, not rounded.

ggml's quantizers find a scale of their own, mostly by the largest magnitude, which gives other values: of a
block whose largest magnitude is not at the lowest level, q4_0's scale is too small.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Final

import numpy as np

from quantmill.engine.ggml import Bytes, Conversion
from quantmill.errors import QuantmillError
from quantmill.formats.types import known
from quantmill.grid.fit import GRIDS, Fit, fit
from quantmill.grid.rounding import as_bits, rounded, values_of
from quantmill.quantize import grids
from quantmill.quantize.layouts import crumbs

VERSION: Final = 1
"""Of the bytes; part of the keys of what is packed."""

_RUN: Final = 1 << 14  # blocks of a thread at a time

# Where a block has its scale, and whether its minimum follows: ggml-common.h.
_SCALE_AT: Final = {"tq2_0": 64, **dict.fromkeys(("q4_0", "iq4_nl", "q4_1", "q5_0", "q5_1", "q8_0"), 0)}


def repack(
    source: Bytes, dtype: str, kind: str, shape: tuple[int, ...], pool: Executor, threads: int
) -> Bytes:
    """A tensor's bytes of type `kind`. QuantmillError where its values are not on the grid, or where what
    the engine dequantizes is another value than the source's.
    """
    bits = as_bits(source, dtype).reshape(-1, GRIDS[kind].block)
    starts = range(0, len(bits), _RUN)
    runs = pool.map(lambda start: _packed(bits[start : start + _RUN], dtype, kind), starts)
    made = np.concatenate(list(runs)).reshape(-1)
    back = Conversion(pool, threads, made, kind, "f32", shape, None).result().view(np.float32)
    for start in starts:
        part = bits[start : start + _RUN]
        place = slice(start * part.shape[1], start * part.shape[1] + part.size)
        same = rounded(back[place], dtype) == values_of(part, dtype).values.astype(np.float32).reshape(-1)
        if not same.all():
            first = place.start + int(np.flatnonzero(~same)[0])
            raise QuantmillError(f"is not the source's value once it is {kind}, the first at {first:,}")
    return made


def _packed(bits: np.ndarray, dtype: str, kind: str) -> Bytes:
    made = fit(bits, dtype, GRIDS[kind])
    if not made.fits.all():
        raise QuantmillError(
            f"lies not on the grid of {kind}", cure="delete manifest.tsv to have it looked at again"
        )
    data = np.zeros((len(bits), 1, known(kind).block_bytes), np.uint8)
    codes = GRIDS[kind].codes(made.levels)[:, None]
    if kind == "tq2_0":
        crumbs(data, 0, codes)
    else:
        grids.GRIDS[kind].pack(data, codes)
    _put_scales(data[:, 0], kind, made)
    return data


def _put_scales(blocks: Bytes, kind: str, made: Fit) -> None:
    if kind == "mxfp4":  # e8m0 of twice the scale, as levels are doubled
        blocks[:, 0] = np.frexp(made.scales)[1] + 127
        return
    start = _SCALE_AT[kind]
    blocks[:, start : start + 2] = made.scales.astype("<f2").view(np.uint8).reshape(-1, 2)
    if GRIDS[kind].offset:
        blocks[:, start + 2 : start + 4] = made.minima.astype("<f2").view(np.uint8).reshape(-1, 2)
