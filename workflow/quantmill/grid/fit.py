"""Blocks of values as scales and codes of a grid that gives back exactly these values.

A block lies on the grid of a type if there are a scale, as the type stores it, and codes such that what
llama.cpp computes from them, rounded to the source's own type (to nearest, ties to even), are the block's
values; the sign of a zero does not count. A tensor lies on it if all its blocks do.

The value of the largest magnitude is tried at each level of the grid. This bounds the scale to what is
rounded to that value, which is narrow enough to tell the level of every other one; each bounds it further,
and the middle of what is left decides, rounded to what the type can store. Of more than 64 levels a bf16
does not tell the largest: there each scale that the type can store is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantmill.grid.rounding import Bits, Doubles, Values, rounded, values_of

FP8: Final = "fp8"
"""The grid of FP8 (E4M3) with a scale for a block or more: no type of ggml has it."""

# An f16 has three bits more than a bf16: so many lie on either side within what is rounded to one.
_NEAR: Final = (0, 1, -1, 2, -2, 3, -3, 4, -4)
_TOLD: Final = 64  # levels that a bf16 tells from their neighbours
_FEW: Final = 32


class Grid(NamedTuple):
    """The grid of a type: `block` values share a scale, as `stored` rounds it, with `offset` an f16 minimum.

    `nearest` gives the level of a value over the scale. `tops` are those that the largest magnitude may have;
    of a `mirrored` one the sign is the value's own, and the scale is positive. A code is a level's place: the
    levels lie in a row from `least`, or are `listed`. Of a `skewed` grid no level has a counterpart: its
    scales have either sign.
    """

    name: str
    block: int
    nearest: Callable[[Doubles], Doubles]
    tops: tuple[float, ...]
    stored: Callable[[Doubles], Doubles]
    least: int = 0
    most: float = np.inf
    offset: bool = False
    listed: Doubles | None = None
    skewed: bool = False

    @property
    def size(self) -> float:
        """How many levels there are."""
        return float(self.most - self.least + 1 if self.listed is None else len(self.listed))

    @property
    def few(self) -> bool:
        """Whether a block has so few levels that it is worth while to count its values first."""
        return self.size < _FEW

    def codes(self, levels: Doubles) -> NDArray[np.uint8]:
        """The codes of levels."""
        if self.listed is not None:
            return np.searchsorted(self.listed, levels).astype(np.uint8)
        return (levels - self.least).astype(np.uint8)


class Fit(NamedTuple):
    """What blocks [n, block] are made of: scales and minima [n], levels [n, block], and which blocks fit."""

    scales: Doubles
    minima: Doubles
    levels: Doubles
    fits: NDArray[np.bool_]


def _f16(scales: Doubles) -> Doubles:
    with np.errstate(over="ignore"):
        return scales.astype(np.float16).astype(np.float64)


def _power(scales: Doubles) -> Doubles:
    """The nearest powers of two; half of what e8m0 stores: levels are doubled."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exponents = np.clip(np.rint(np.log2(np.abs(scales))), -128, 126)
        return np.where(scales == 0, 2.0**-128, np.ldexp(1.0, np.nan_to_num(exponents).astype(np.int32)))


def _any(scales: Doubles) -> Doubles:
    return scales.astype(np.float32).astype(np.float64)


_E2M1: Final = np.array([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12], np.float64)


def _nearest_e2m1(ratios: Doubles) -> Doubles:
    return _E2M1[np.searchsorted((_E2M1[1:] + _E2M1[:-1]) / 2, ratios)]


# kvalues_iq4nl of ggml-common.h
_IQ4_NL: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64
)


def _nearest_iq4_nl(ratios: Doubles) -> Doubles:
    return _IQ4_NL[np.searchsorted((_IQ4_NL[1:] + _IQ4_NL[:-1]) / 2, ratios)]


def _nearest_e4m3(ratios: Doubles) -> Doubles:
    """Four significant bits; e4m3's smallest have fewer, so that these are among them."""
    fractions, exponents = np.frexp(ratios)
    return np.ldexp(np.rint(fractions * 16) / 16, exponents)


def _down(most: int) -> tuple[float, ...]:
    return tuple(map(float, range(most, 0, -1)))


GRIDS: Final = {
    grid.name: grid
    for grid in (
        Grid("tq2_0", 256, np.rint, (1.0,), _f16, -1, 1),
        Grid("mxfp4", 32, _nearest_e2m1, (12, 8, 6, 4, 3, 2, 1), _power, -12, 12, listed=_E2M1),
        Grid("q4_0", 32, np.rint, (-8.0, *_down(7)), _f16, -8, 7),
        Grid(
            "iq4_nl",
            32,
            _nearest_iq4_nl,
            tuple(map(float, _IQ4_NL)),
            _f16,
            -127,
            113,
            listed=_IQ4_NL,
            skewed=True,
        ),
        Grid("q4_1", 32, np.rint, _down(15), _f16, 0, 15, offset=True),
        Grid("q5_0", 32, np.rint, (-16.0, *_down(15)), _f16, -16, 15),
        Grid("q5_1", 32, np.rint, _down(31), _f16, 0, 31, offset=True),
        Grid("q8_0", 32, np.rint, _down(127), _f16, -127, 127),
        Grid(FP8, 128, _nearest_e4m3, (15, 14, 13, 12, 11, 10, 9, 8), _any),
    )
}
"""The grids that are looked for, fewest bits first."""


def fit(bits: Bits, dtype: str, grid: Grid) -> Fit:
    """What blocks of a float type's bits [n, block] are made of."""
    whole = values_of(bits, dtype)
    count = len(bits)
    made = Fit(np.zeros(count), np.zeros(count), np.zeros(bits.shape), np.zeros(count, np.bool_))
    for minima, due in _minima(whole, grid, made.fits):
        for top in grid.tops:
            if (rows := np.flatnonzero(due & ~made.fits)).size:
                _take(made, rows, whole.of(rows), minima[rows], np.full(rows.size, top), grid, dtype)
    close = grid.listed is None and _TOLD < grid.most < np.inf
    if dtype == "bf16" and close and 2 * np.count_nonzero(made.fits) >= count:
        _try_scales(made, whole, grid, dtype)
    return made


def fits(bits: Bits, dtype: str, grid: Grid) -> bool:
    """Whether all blocks lie on the grid."""
    return bool(fit(bits, dtype, grid).fits.all())


def may_fit(bits: Bits, dtype: str, grid: Grid) -> bool:
    """Whether one of a few blocks lies on the grid, without those that take long to tell: a quick test."""
    if grid.few and any(np.unique(block).size > grid.size + 1 for block in bits):
        return False  # with two zeros
    whole = values_of(bits, dtype)
    tops = np.tile(grid.tops, len(bits))
    for minima, due in _minima(whole, grid, np.zeros(len(bits), np.bool_)):
        rows = np.repeat(np.arange(len(bits)), len(grid.tops))
        part = whole.of(rows)
        scales, levels, there = _at(part, minima[rows], tops, grid)
        if (there & due[rows] & _same(part.values, scales, levels, minima[rows], dtype)).any():
            return True
    return False


def _take(
    made: Fit, rows: NDArray[np.int64], part: Values, minima: Doubles, tops: Doubles, grid: Grid, dtype: str
) -> None:
    """Note those of the rows that fit with their largest magnitudes at the levels `tops`."""
    scales, levels, there = _at(part, minima, tops, grid)
    _note(made, rows, scales, levels, minima, there & _same(part.values, scales, levels, minima, dtype))


def _note(
    made: Fit,
    rows: NDArray[np.int64],
    scales: Doubles,
    levels: Doubles,
    minima: Doubles,
    fits: NDArray[np.bool_],
) -> None:
    taken = rows[fits]
    made.scales[taken], made.levels[taken] = scales[fits], levels[fits]
    made.minima[taken], made.fits[taken] = minima[fits], True


def _try_scales(made: Fit, whole: Values, grid: Grid, dtype: str) -> None:
    """Try each scale that may be rounded to the largest magnitude, for the blocks that are left."""
    for top in grid.tops:
        rows = np.flatnonzero(~made.fits)
        if top < _TOLD or not rows.size:
            return
        values = whole.values[rows]
        nearest = (np.abs(values).max(axis=1) / top).astype(np.float16).view(np.int16)
        for away in range(-2 * len(_NEAR) + 1, 2 * len(_NEAR)):
            scales = (nearest + np.int16(away)).view(np.float16).astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                levels = np.rint(values / scales[:, None])
            there = (np.abs(levels) <= grid.most).all(axis=1) & (scales > 0)
            there &= _same(values, scales, levels, np.zeros(rows.size), dtype) & ~made.fits[rows]
            _note(made, rows, scales, levels, np.zeros(rows.size), there)


def _minima(
    whole: Values, grid: Grid, fits: NDArray[np.bool_]
) -> Iterator[tuple[Doubles, NDArray[np.bool_]]]:
    """The minima to be tried, and for which blocks; zero alone where the grid has none."""
    if not grid.offset:
        yield np.zeros(len(fits)), np.ones(len(fits), np.bool_)
        return
    least = whole.values.argmin(axis=1)[:, None]
    low, value, high = (
        np.take_along_axis(part, least, 1)[:, 0] for part in (whole.low, whole.values, whole.high)
    )
    with np.errstate(over="ignore"):
        nearest = value.astype(np.float16).view(np.int16)
    for away in _NEAR:
        if fits.all():
            return
        minima = (nearest + np.int16(away)).view(np.float16).astype(np.float64)
        yield minima, (low <= minima) & (minima <= high)


def _at(
    part: Values, minima: Doubles, tops: Doubles, grid: Grid
) -> tuple[Doubles, Doubles, NDArray[np.bool_]]:
    """(scales, levels, whether there are such) with the largest magnitudes of blocks at the levels `tops`.

    A negative one is that of the lowest level, which has no counterpart: there the scale may be negative.
    """
    values, low, high = (side - minima[:, None] for side in part)
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], 1)
    top = tops[:, None]
    scale = np.where((top < 0) | grid.skewed, largest, np.abs(largest)) / top
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = grid.nearest(np.where(scale == 0, 0, values / np.where(scale == 0, 1, scale)))
        zero = levels == 0
        ends = np.where(zero, np.inf, low / levels), np.where(zero, np.inf, high / levels)
    least = np.where(zero, -np.inf, np.minimum(*ends)).max(axis=1)
    most = np.maximum(*ends).min(axis=1)
    there = (~zero | ((low <= 0) & (high >= 0))).all(axis=1)
    there &= ((levels >= grid.least) & (levels <= grid.most)).all(axis=1) if grid.name != FP8 else True
    with np.errstate(invalid="ignore"):
        middle = np.nan_to_num((least + most) / 2)  # of zeros there are no ends
    scales = grid.stored(middle)
    return scales, levels, there & ((least <= scales) & (scales <= most) | zero.all(axis=1))


def _same(
    values: Doubles, scales: Doubles, levels: Doubles, minima: Doubles, dtype: str
) -> NDArray[np.bool_]:
    """Whether blocks are what is computed from their scales and levels, as llama.cpp does it."""
    with np.errstate(over="ignore", invalid="ignore"):
        computed = scales.astype(np.float32)[:, None] * levels.astype(np.float32)
        computed += minima.astype(np.float32)[:, None]
        return np.asarray((rounded(computed, dtype) == values.astype(np.float32)).all(axis=1))
