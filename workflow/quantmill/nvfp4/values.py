"""NVFP4 as modelopt stores it: four-bit floats, a scale for 16 of them, a scale for the tensor.

A value is e2m1 x `weight_scale` (e4m3, a block) x `weight_scale_2` (f32, the
tensor): modelopt's `NVFP4QTensor`, whose bytes these are, tie for tie. Tensors
are worked on as their bits, piece by piece over threads: the largest magnitude
is the largest integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[Any]  # uint16 (F16, BF16) or uint32 (F32), a row of the matrix a row
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BLOCK = 16
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1_MAX, E4M3_MAX, E4M3_MIN = np.float32(6), np.float32(448), np.float32(2.0**-9)
# Infinity's bits, by safetensors' name of the type: whatever is not below is not finite.
INFINITY = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000}
# The values halfway between two of E2M1, and whether they go up: to the even code.
_HALFWAY = [(0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False)]
_PIECE = 1 << 18  # elements: temporaries near the cache's size, calls long enough to run beside each other
_E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
# The two values of a byte, the even index in the low nibble; as one 64-bit item, for one look-up.
_SIGNED = np.concatenate([E2M1, -E2M1])
_PAIRS = np.stack([np.tile(_SIGNED, 16), np.repeat(_SIGNED, 16)], axis=1).view(np.uint64).ravel()


def as_bits(data: Bytes, dtype: str, shape: tuple[int, ...]) -> Bits:
    """The bytes of an F16, BF16 or F32 tensor as unsigned integers of its shape."""
    return data.view(np.uint32 if dtype == "F32" else np.uint16).reshape(shape)


def largest(bits: Bits, dtype: str, pool: Executor) -> float | None:
    """The largest magnitude of a tensor; None where a value is not finite."""
    largest = max(pool.map(lambda rows: int(_magnitude(rows).max(initial=0)), pieces(bits)), default=0)
    if largest >= INFINITY[dtype]:
        return None
    return float(floats(np.array([largest], bits.dtype), dtype)[0])


def tensor_scale(amax: float) -> np.float32:
    """`weight_scale_2`: the largest magnitude becomes 6 x 448.

    1 for a tensor of zeros, where modelopt's would be 0: readers divide by it.
    """
    scale = np.float32(amax) / (E2M1_MAX * E4M3_MAX)
    return scale if scale > 0 else np.float32(1)


def quantize(bits: Bits, dtype: str, scale: np.float32, pool: Executor) -> tuple[Bytes, Bytes]:
    """A matrix [rows, columns] as codes [rows, columns / 2] and e4m3 block scales [rows, columns / 16]."""
    rows, columns = bits.shape
    codes = np.empty((rows, columns // 2), np.uint8)
    scales = np.empty((rows, columns // BLOCK), np.uint8)

    def work(piece: tuple[Bits, Bytes, Bytes]) -> None:
        values, code, block = piece
        code[...], block[...] = (part.reshape(len(values), -1) for part in _quantize(values, dtype, scale))

    list(pool.map(work, zip(pieces(bits), pieces(codes, columns), pieces(scales, columns), strict=True)))
    return codes, scales


def _quantize(bits: Bits, dtype: str, scale: np.float32) -> tuple[Bytes, Bytes]:
    bits = bits.reshape(-1)
    magnitude = _magnitude(bits)
    top = magnitude
    for _ in range(4):  # the largest of each 16, by halves
        top = np.maximum(top[0::2], top[1::2])
    block = floats(top, dtype) / (E2M1_MAX * scale)
    block[block == 0] = 1
    np.clip(block, E4M3_MIN, E4M3_MAX, out=block)
    stored = block.astype(ml_dtypes.float8_e4m3fn)
    quotient = floats(magnitude, dtype)
    quotient /= np.repeat(_E4M3[stored.view(np.uint8)] * scale, BLOCK)
    code = (bits > (0x8000 if bits.itemsize == 2 else 0x80000000)).view(np.uint8)  # -0.0 is not below 0
    for _ in range(3):  # to the sign's place: by additions, ten times as fast as numpy's shift of bytes
        code += code
    for halfway, up in _HALFWAY:
        passed = quotient >= np.float32(halfway) if up else quotient > np.float32(halfway)
        code += passed.view(np.uint8)
    pair = code.view(np.uint16)
    return (pair | (pair >> 4)).astype(np.uint8), stored.view(np.uint8)


def dequantize(codes: Bytes, scales: Bytes, scale: np.float32) -> Floats:
    """The values [rows, columns] of codes and block scales: what a reader makes of them."""
    values = _PAIRS[codes.reshape(-1)].view(np.float32).reshape(-1, BLOCK)
    values *= (_E4M3[scales.reshape(-1)] * scale)[:, None]
    return values.reshape(len(codes), -1)


def relative_error(
    bits: Bits, dtype: str, codes: Bytes, scales: Bytes, scale: np.float32, pool: Executor
) -> float:
    """Root of the sum of squared errors over that of squares; NaN where what was stored is not finite."""

    def work(piece: tuple[Bits, Bytes, Bytes]) -> tuple[float, float]:
        values, code, block = piece
        signs = (values >> (values.itemsize * 8 - 1)).astype(np.float32)
        true = floats(_magnitude(values), dtype) * (1 - 2 * signs)
        wrong = (dequantize(code, block, scale) - true).ravel()
        # Sums of a piece in float32, of the pieces in float64.
        return float(wrong @ wrong), float(true.ravel() @ true.ravel())

    columns = bits.shape[1]
    parts = zip(pieces(bits), pieces(codes, columns), pieces(scales, columns), strict=True)
    wrong, true = np.sum(list(pool.map(work, parts)), axis=0)
    return float(np.sqrt(wrong / true)) if true > 0 else float(np.sqrt(wrong))


def floats(bits: Bits, dtype: str) -> Floats:
    """Magnitudes (the sign's bit unset) as float32, exactly."""
    if dtype == "F32":
        return bits.view(np.float32).copy()
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16 if dtype == "BF16" else 13)
    values = wide.view(np.float32)
    if dtype == "F16":
        values *= np.float32(2.0**112)  # F16's exponents begin so much higher; numpy's own cast is slower
    return values


def pieces(matrix: npt.NDArray[Any], columns: int | None = None) -> Iterator[npt.NDArray[Any]]:
    """The matrix by rows, in pieces as large as suits one of `columns` (default: its own)."""
    rows = max(1, _PIECE // (columns or matrix.shape[1]))
    return (matrix[start : start + rows] for start in range(0, len(matrix), rows))


def _magnitude(bits: Bits) -> Bits:
    return bits & bits.dtype.type(0x7FFF if bits.itemsize == 2 else 0x7FFFFFFF)
