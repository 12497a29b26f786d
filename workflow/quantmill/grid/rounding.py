"""What the values of a float type stand for: the numbers that are rounded to each."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[Any]  # uint16 (f16, bf16) or uint32 (f32)
Doubles = NDArray[np.float64]

WIDTHS: Final = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of the types that a grid is looked for in."""

# Far below what a product of a scale and a code can be off by, far above what float64 rounds.
_EDGE: Final = 2.0**-40


class Values(NamedTuple):
    """Values, and the ends of the numbers that are rounded to each (to nearest, ties to even)."""

    values: Doubles
    low: Doubles
    high: Doubles

    def of(self, rows: NDArray[Any]) -> Values:
        """Those of some rows."""
        return Values(self.values[rows], self.low[rows], self.high[rows])


def as_bits(data: NDArray[np.uint8], dtype: str) -> Bits:
    """The bytes of a tensor as unsigned integers."""
    return np.ascontiguousarray(data).view(f"<u{WIDTHS[dtype]}")


def values_of(bits: Bits, dtype: str) -> Values:
    """The values of bits of a float type. The ends of what is rounded to an odd one are left out, as ties go
    to the even one.
    """
    if bits.dtype.itemsize > 2:
        return _computed(bits, dtype)
    table = _table(dtype)
    return Values(*(np.take(part, bits) for part in table))


@cache
def _table(dtype: str) -> Values:
    """All values of a type of 16 bits."""
    return _computed(np.arange(1 << 16, dtype=np.uint16), dtype)


def _computed(bits: Bits, dtype: str) -> Values:
    sign = bits.dtype.type(1 << (8 * WIDTHS[dtype] - 1))
    magnitudes = (bits & ~sign).astype(np.uint32)
    values = _floats(magnitudes, dtype)
    above = (values + _floats(magnitudes + 1, dtype)) / 2
    first = _floats(np.ones(1, np.uint32), dtype) / 2
    below = np.where(magnitudes == 0, -first, (values + _floats(np.maximum(magnitudes, 1) - 1, dtype)) / 2)
    inwards = np.where(magnitudes & 1, _EDGE, -_EDGE)
    with np.errstate(invalid="ignore"):  # NaN is refused before
        below, above = below + np.abs(below) * inwards, above - above * inwards
    negative = bits & sign != 0
    return Values(
        np.where(negative, -values, values),
        np.where(negative, -above, below),
        np.where(negative, -below, above),
    )


def rounded(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Values as the type holds them."""
    if dtype == "f32":
        return values
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _floats(magnitudes: NDArray[np.uint32], dtype: str) -> Doubles:
    """The values of magnitudes' bits, beyond the largest the one after it in place of infinity."""
    if dtype == "f16":
        exponents, fractions = magnitudes >> 10, magnitudes & 0x3FF
        normal = np.ldexp(1.0 + fractions / 1024, exponents.astype(np.int32) - 15)
        return np.where(exponents == 0, fractions * 2.0**-24, normal)
    bits = magnitudes << 16 if dtype == "bf16" else magnitudes
    with np.errstate(invalid="ignore"):
        return bits.astype(np.uint32).view(np.float32).astype(np.float64)
