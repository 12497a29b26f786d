"""The grids of ggml's types: the values that each block of a row may have, and how codes are packed.

The scales of a block are read from data that ggml quantized; codes are written beside them. The layouts
are those of ggml-common.h, the order of elements that of the `dequantize_row_*` in ggml-quants.c.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from quantmill.formats.types import known
from quantmill.quantize.ik_grids import IK_GRIDS
from quantmill.quantize.layouts import (
    IQ4,
    Bytes,
    Grid,
    Scales,
    blocks_of,
    crumbs,
    f16,
    nibbles,
    nibbles_of_32,
    nibbles_of_64,
    single_bits,
    symmetric,
)


def steps_and_offsets(data: Bytes, type_name: str, rows: int) -> Scales:
    """Of rows of a type's data: steps and offsets [groups of a row, rows]."""
    grid = GRIDS[type_name]
    steps, offsets = (part.reshape(rows, -1).T for part in grid.scales(blocks_of(data, type_name, rows)))
    if grid.row_scale is None:
        return steps, offsets
    heads = np.ascontiguousarray(data.reshape(rows, -1)[:, : known(type_name).row_bytes])
    scales = heads.view(grid.row_scale).astype(np.float32)[:, 0]
    return steps * scales, offsets * scales


def packed(data: Bytes, type_name: str, codes: Bytes) -> Bytes:
    """A copy of rows of a type's data with these codes [rows, columns] beside their scales."""
    made = data.reshape(-1).copy()
    blocks = blocks_of(made, type_name, len(codes))
    GRIDS[type_name].pack(blocks, codes.reshape(*blocks.shape[:2], known(type_name).block_elements))
    return made


# --- blocks of 32 -----------------------------------------------------------------------------------


def _fifth_bits(blocks: Bytes, start: int, codes: Bytes) -> None:
    """The fifth bits of 32 codes, a little-endian u32."""
    blocks[..., start : start + 4] = np.packbits(codes >> 4, axis=-1, bitorder="little")


def _with_minimum(blocks: Bytes) -> Scales:
    return f16(blocks, 0), f16(blocks, 2)


def _pack_q4_0(blocks: Bytes, codes: Bytes) -> None:
    nibbles(blocks, 2, codes)


def _pack_q4_1(blocks: Bytes, codes: Bytes) -> None:
    nibbles(blocks, 4, codes)


def _pack_q5_0(blocks: Bytes, codes: Bytes) -> None:
    _fifth_bits(blocks, 2, codes)
    nibbles(blocks, 6, codes)


def _pack_q5_1(blocks: Bytes, codes: Bytes) -> None:
    _fifth_bits(blocks, 4, codes)
    nibbles(blocks, 8, codes)


def _pack_q8_0(blocks: Bytes, codes: Bytes) -> None:
    blocks[..., 2:34] = codes - np.uint8(127)  # two's complement


# --- k-quants ---------------------------------------------------------------------------------------


def _scales_q2_k(blocks: Bytes) -> Scales:
    scales = blocks[..., :16]
    return f16(blocks, 80) * (scales & 15), -f16(blocks, 82) * (scales >> 4)


def _pack_q2_k(blocks: Bytes, codes: Bytes) -> None:
    crumbs(blocks, 16, codes)


def _scales_q3_k(blocks: Bytes) -> Scales:
    low = np.concatenate([blocks[..., 96:104] & 15, blocks[..., 96:104] >> 4], axis=-1)
    high = blocks[..., 104:108]
    high = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    scales = (low | high << 4).astype(np.float32) - np.float32(32)
    return symmetric(f16(blocks, 108) * scales, 4)


def _pack_q3_k(blocks: Bytes, codes: Bytes) -> None:
    crumbs(blocks, 32, codes)
    single_bits(blocks, 0, codes, 2)


def _scales_q4_k(blocks: Bytes) -> Scales:
    """Eight scales and minima of six bits (`get_scale_min_k4`); of q5_K too."""
    first, second, third = (blocks[..., 4 + start : 8 + start] for start in (0, 4, 8))
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    return f16(blocks, 0) * scales, -f16(blocks, 2) * minima


def _pack_q4_k(blocks: Bytes, codes: Bytes) -> None:
    nibbles_of_64(blocks, 16, codes)


def _pack_q5_k(blocks: Bytes, codes: Bytes) -> None:
    single_bits(blocks, 16, codes, 4)
    nibbles_of_64(blocks, 48, codes)


def _scales_q6_k(blocks: Bytes) -> Scales:
    scales = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
    return symmetric(f16(blocks, 208) * scales, 32)


def _pack_q6_k(blocks: Bytes, codes: Bytes) -> None:
    halves = codes.reshape(*codes.shape[:2], 2, 4, 32)
    low, shifts = halves & 15, np.array([0, 2, 4, 6], np.uint8)[:, None]
    nibbles = low[..., :2, :] | low[..., 2:, :] << 4
    blocks[..., :128] = nibbles.reshape(*codes.shape[:2], 128)
    high = np.bitwise_or.reduce(halves >> 4 << shifts, axis=-2)
    blocks[..., 128:192] = high.reshape(*codes.shape[:2], 64)


# --- types of 16 uneven values ----------------------------------------------------------------------


def _scales_iq4_xs(blocks: Bytes) -> Scales:
    high = np.ascontiguousarray(blocks[..., 2:4]).view("<u2")
    low = np.stack([blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4], axis=-1).reshape(*blocks.shape[:2], 8)
    high = high >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (low | high << 4).astype(np.float32) - np.float32(32)
    return symmetric(f16(blocks, 0) * scales, 0)


def _pack_iq4_xs(blocks: Bytes, codes: Bytes) -> None:
    nibbles_of_32(blocks, 8, codes)


# --- four-bit floats --------------------------------------------------------------------------------

_E2M1: Final = np.array([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12], np.float32)
"""Twice the values of e2m1 (`kvalues_mxfp4`), ascending."""

_E2M1_CODES: Final = np.array([15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7], np.uint8)


def _scales_mxfp4(blocks: Bytes) -> Scales:
    """Half of e8m0's power of two (`ggml_e8m0_to_fp32_half`)."""
    exponents = blocks[..., :1].astype(np.uint32)
    bits = np.where(exponents < 2, 0x00200000 << exponents, exponents - 1 << 23).astype(np.uint32)
    return symmetric(bits.view(np.float32), 0)


def _pack_mxfp4(blocks: Bytes, codes: Bytes) -> None:
    nibbles(blocks, 1, _E2M1_CODES[codes])


def _scales_nvfp4(blocks: Bytes) -> Scales:
    """Half of e4m3 without a sign (`ggml_ue4m3_to_fp32`), which has no value for its last code."""
    exponents, fractions = (blocks[..., :4] >> 3).astype(np.int32), (blocks[..., :4] & 7).astype(np.float32)
    normal = np.ldexp(np.float32(1) + fractions / np.float32(8), exponents - 8)
    scales = np.where(exponents == 0, fractions * np.float32(2.0**-10), normal)
    return symmetric(np.where(blocks[..., :4] == 0x7F, 0, scales).astype(np.float32), 0)


def _pack_nvfp4(blocks: Bytes, codes: Bytes) -> None:
    """Of each 16 codes the first eight are the low nibbles of eight bytes, the others the high ones."""
    halves = _E2M1_CODES[codes].reshape(*codes.shape[:2], 4, 2, 8)
    blocks[..., 4:36] = (halves[..., 0, :] | halves[..., 1, :] << 4).reshape(*codes.shape[:2], 32)


GRIDS: Final = {
    "q4_0": Grid(32, 16, lambda blocks: symmetric(f16(blocks, 0), 8), _pack_q4_0),
    "q4_1": Grid(32, 16, _with_minimum, _pack_q4_1),
    "q5_0": Grid(32, 32, lambda blocks: symmetric(f16(blocks, 0), 16), _pack_q5_0),
    "q5_1": Grid(32, 32, _with_minimum, _pack_q5_1),
    "q8_0": Grid(32, 255, lambda blocks: symmetric(f16(blocks, 0), 127), _pack_q8_0),
    "q2_K": Grid(16, 4, _scales_q2_k, _pack_q2_k),
    "q3_K": Grid(16, 8, _scales_q3_k, _pack_q3_k),
    "q4_K": Grid(32, 16, _scales_q4_k, _pack_q4_k),
    "q5_K": Grid(32, 32, _scales_q4_k, _pack_q5_k),
    "q6_K": Grid(16, 64, _scales_q6_k, _pack_q6_k),
    "iq4_nl": Grid(32, 16, lambda blocks: symmetric(f16(blocks, 0), 0), _pack_q4_0, IQ4),
    "iq4_xs": Grid(32, 16, _scales_iq4_xs, _pack_iq4_xs, IQ4),
    "mxfp4": Grid(32, 15, _scales_mxfp4, _pack_mxfp4, _E2M1),
    "nvfp4": Grid(16, 15, _scales_nvfp4, _pack_nvfp4, _E2M1),
    **IK_GRIDS,
}
"""The grids by type, of either engine."""
