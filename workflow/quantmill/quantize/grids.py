"""The grids of ggml's types: the values that each block of a row may have, and how codes are packed.

The scales of a block are read from data that ggml quantized; codes are written beside them. The layouts
are those of ggml-common.h, the order of elements that of the `dequantize_row_*` in ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.formats.types import known

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Scales = tuple[Floats, Floats]


@dataclass(frozen=True)
class Grid:
    """A type's grid: `group` elements share a scale, a code has one of `levels` values.

    `scales` gives steps and offsets [rows, blocks, groups of a block] of blocks [rows, blocks, bytes]. A
    value is offset + step * code; with `values` [levels], ascending, offset + step * values[code].
    `pack` writes codes [rows, blocks, elements] into the blocks.
    """

    group: int
    levels: int
    scales: Callable[[Bytes], Scales]
    pack: Callable[[Bytes, Bytes], None]
    values: Floats | None = None


def blocks_of(data: Bytes, type_name: str, rows: int) -> Bytes:
    """Data of a type as [rows, blocks, bytes of a block]."""
    return data.reshape(rows, -1, known(type_name).block_bytes)


def steps_and_offsets(data: Bytes, type_name: str, rows: int) -> Scales:
    """Of rows of a type's data: steps and offsets [groups of a row, rows]."""
    steps, offsets = GRIDS[type_name].scales(blocks_of(data, type_name, rows))
    return steps.reshape(rows, -1).T, offsets.reshape(rows, -1).T


def packed(data: Bytes, type_name: str, codes: Bytes) -> Bytes:
    """A copy of rows of a type's data with these codes [rows, columns] beside their scales."""
    blocks = blocks_of(data, type_name, len(codes)).copy()
    GRIDS[type_name].pack(blocks, codes.reshape(*blocks.shape[:2], known(type_name).block_elements))
    return blocks.reshape(-1)


def f16(blocks: Bytes, start: int) -> Floats:
    """The f16 at a byte of each block, f32 [rows, blocks, 1]."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16).astype(np.float32)


def _symmetric(steps: Floats, zero: int) -> Scales:
    """Of a type whose code `zero` is the value 0."""
    return steps, np.float32(-zero) * steps


# --- blocks of 32 -----------------------------------------------------------------------------------


def _nibbles(blocks: Bytes, start: int, codes: Bytes) -> None:
    """The low four bits of 32 codes: of the first half the low nibbles, of the second the high ones."""
    blocks[..., start : start + 16] = (codes[..., :16] & 15) | (codes[..., 16:] & 15) << 4


def _fifth_bits(blocks: Bytes, start: int, codes: Bytes) -> None:
    """The fifth bits of 32 codes, a little-endian u32."""
    blocks[..., start : start + 4] = np.packbits(codes >> 4, axis=-1, bitorder="little")


def _with_minimum(blocks: Bytes) -> Scales:
    return f16(blocks, 0), f16(blocks, 2)


def _pack_q4_0(blocks: Bytes, codes: Bytes) -> None:
    _nibbles(blocks, 2, codes)


def _pack_q4_1(blocks: Bytes, codes: Bytes) -> None:
    _nibbles(blocks, 4, codes)


def _pack_q5_0(blocks: Bytes, codes: Bytes) -> None:
    _fifth_bits(blocks, 2, codes)
    _nibbles(blocks, 6, codes)


def _pack_q5_1(blocks: Bytes, codes: Bytes) -> None:
    _fifth_bits(blocks, 4, codes)
    _nibbles(blocks, 8, codes)


def _pack_q8_0(blocks: Bytes, codes: Bytes) -> None:
    blocks[..., 2:34] = codes - np.uint8(127)  # two's complement


# --- k-quants ---------------------------------------------------------------------------------------


def _crumbs(blocks: Bytes, start: int, codes: Bytes) -> None:
    """The low two bits of 256 codes: each byte has those of four elements that are 32 apart."""
    quarters = codes.reshape(*codes.shape[:2], 2, 4, 32) & 3
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    blocks[..., start : start + 64] = np.bitwise_or.reduce(quarters << shifts, axis=-2).reshape(
        *codes.shape[:2], 64
    )


def _scales_q2_k(blocks: Bytes) -> Scales:
    scales = blocks[..., :16]
    return f16(blocks, 80) * (scales & 15), -f16(blocks, 82) * (scales >> 4)


def _pack_q2_k(blocks: Bytes, codes: Bytes) -> None:
    _crumbs(blocks, 16, codes)


def _scales_q3_k(blocks: Bytes) -> Scales:
    low = np.concatenate([blocks[..., 96:104] & 15, blocks[..., 96:104] >> 4], axis=-1)
    high = blocks[..., 104:108]
    high = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    scales = (low | high << 4).astype(np.float32) - np.float32(32)
    return _symmetric(f16(blocks, 108) * scales, 4)


def _pack_q3_k(blocks: Bytes, codes: Bytes) -> None:
    _crumbs(blocks, 32, codes)
    bits = codes.reshape(*codes.shape[:2], 8, 32) >> 2
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    blocks[..., :32] = np.bitwise_or.reduce(bits << shifts, axis=-2)


def _scales_q4_k(blocks: Bytes) -> Scales:
    """Eight scales and minima of six bits (`get_scale_min_k4`); of q5_K too."""
    first, second, third = (blocks[..., 4 + start : 8 + start] for start in (0, 4, 8))
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    return f16(blocks, 0) * scales, -f16(blocks, 2) * minima


def _nibbles_of_64(blocks: Bytes, start: int, codes: Bytes) -> None:
    """The low four bits of 256 codes: each byte has those of two elements that are 32 apart."""
    pairs = codes.reshape(*codes.shape[:2], 4, 2, 32) & 15
    blocks[..., start : start + 128] = (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(
        *codes.shape[:2], 128
    )


def _pack_q4_k(blocks: Bytes, codes: Bytes) -> None:
    _nibbles_of_64(blocks, 16, codes)


def _pack_q5_k(blocks: Bytes, codes: Bytes) -> None:
    bits = codes.reshape(*codes.shape[:2], 8, 32) >> 4
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    blocks[..., 16:48] = np.bitwise_or.reduce(bits << shifts, axis=-2)
    _nibbles_of_64(blocks, 48, codes)


def _scales_q6_k(blocks: Bytes) -> Scales:
    scales = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
    return _symmetric(f16(blocks, 208) * scales, 32)


def _pack_q6_k(blocks: Bytes, codes: Bytes) -> None:
    halves = codes.reshape(*codes.shape[:2], 2, 4, 32)
    low, shifts = halves & 15, np.array([0, 2, 4, 6], np.uint8)[:, None]
    nibbles = low[..., :2, :] | low[..., 2:, :] << 4
    blocks[..., :128] = nibbles.reshape(*codes.shape[:2], 128)
    high = np.bitwise_or.reduce(halves >> 4 << shifts, axis=-2)
    blocks[..., 128:192] = high.reshape(*codes.shape[:2], 64)


# --- types of 16 uneven values ----------------------------------------------------------------------

_IQ4: Final = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _scales_iq4_xs(blocks: Bytes) -> Scales:
    high = np.ascontiguousarray(blocks[..., 2:4]).view("<u2")
    low = np.stack([blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4], axis=-1).reshape(*blocks.shape[:2], 8)
    high = high >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (low | high << 4).astype(np.float32) - np.float32(32)
    return _symmetric(f16(blocks, 0) * scales, 0)


def _pack_iq4_xs(blocks: Bytes, codes: Bytes) -> None:
    pairs = codes.reshape(*codes.shape[:2], 8, 2, 16)
    blocks[..., 8:136] = (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(*codes.shape[:2], 128)


# --- four-bit floats --------------------------------------------------------------------------------

_E2M1: Final = np.array([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12], np.float32)
"""Twice the values of e2m1 (`kvalues_mxfp4`), ascending."""

_E2M1_CODES: Final = np.array([15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7], np.uint8)


def _scales_mxfp4(blocks: Bytes) -> Scales:
    """Half of e8m0's power of two (`ggml_e8m0_to_fp32_half`)."""
    exponents = blocks[..., :1].astype(np.uint32)
    bits = np.where(exponents < 2, 0x00200000 << exponents, exponents - 1 << 23).astype(np.uint32)
    return _symmetric(bits.view(np.float32), 0)


def _pack_mxfp4(blocks: Bytes, codes: Bytes) -> None:
    _nibbles(blocks, 1, _E2M1_CODES[codes])


def _scales_nvfp4(blocks: Bytes) -> Scales:
    """Half of e4m3 without a sign (`ggml_ue4m3_to_fp32`), which has no value for its last code."""
    exponents, fractions = (blocks[..., :4] >> 3).astype(np.int32), (blocks[..., :4] & 7).astype(np.float32)
    normal = np.ldexp(np.float32(1) + fractions / np.float32(8), exponents - 8)
    scales = np.where(exponents == 0, fractions * np.float32(2.0**-10), normal)
    return _symmetric(np.where(blocks[..., :4] == 0x7F, 0, scales).astype(np.float32), 0)


def _pack_nvfp4(blocks: Bytes, codes: Bytes) -> None:
    """Of each 16 codes the first eight are the low nibbles of eight bytes, the others the high ones."""
    halves = _E2M1_CODES[codes].reshape(*codes.shape[:2], 4, 2, 8)
    blocks[..., 4:36] = (halves[..., 0, :] | halves[..., 1, :] << 4).reshape(*codes.shape[:2], 32)


GRIDS: Final = {
    "q4_0": Grid(32, 16, lambda blocks: _symmetric(f16(blocks, 0), 8), _pack_q4_0),
    "q4_1": Grid(32, 16, _with_minimum, _pack_q4_1),
    "q5_0": Grid(32, 32, lambda blocks: _symmetric(f16(blocks, 0), 16), _pack_q5_0),
    "q5_1": Grid(32, 32, _with_minimum, _pack_q5_1),
    "q8_0": Grid(32, 255, lambda blocks: _symmetric(f16(blocks, 0), 127), _pack_q8_0),
    "q2_K": Grid(16, 4, _scales_q2_k, _pack_q2_k),
    "q3_K": Grid(16, 8, _scales_q3_k, _pack_q3_k),
    "q4_K": Grid(32, 16, _scales_q4_k, _pack_q4_k),
    "q5_K": Grid(32, 32, _scales_q4_k, _pack_q5_k),
    "q6_K": Grid(16, 64, _scales_q6_k, _pack_q6_k),
    "iq4_nl": Grid(32, 16, lambda blocks: _symmetric(f16(blocks, 0), 0), _pack_q4_0, _IQ4),
    "iq4_xs": Grid(32, 16, _scales_iq4_xs, _pack_iq4_xs, _IQ4),
    "mxfp4": Grid(32, 15, _scales_mxfp4, _pack_mxfp4, _E2M1),
    "nvfp4": Grid(16, 15, _scales_nvfp4, _pack_nvfp4, _E2M1),
}
"""The grids by type."""
