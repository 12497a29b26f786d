"""The grids of the types that only ik_llama.cpp has, as in `grids`.

A value is one of a table, or of the same table shifted by a constant, as a bit of the group says: the shift
is an offset. The layouts are those of `block_iq2_k` to `block_iq6_k`, `block_iq2_ks` to `block_iq5_ks` and
`block_q6_0` in ik_llama.cpp's ggml-common.h, the tables those of `iq2nl_values` to `iq6nl_values` there. The
order of elements is that of the `dequantize_row_*` in iqk/iqk_quantize.cpp.

Its matrix products take iq6_k's values from the table. `dequantize_row_iq6_k` takes a polynomial instead,
which is beside the table by half a unit at most.

Its other types have no grid: in the trellis types (iq1_kt to iq4_kt) a code gives eight weights their values,
in iq2_kl one gives two, in iq4_kss four weights share 15 bits, and q8_KV keeps the sum of a row's codes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.quantize.layouts import (
    IQ4,
    Bytes,
    Floats,
    Grid,
    Scales,
    crumbs,
    f16,
    nibbles,
    nibbles_of_32,
    nibbles_of_64,
    single_bits,
    symmetric,
)

_IQ2: Final = np.array([-31, -13, 1, 17], np.float32)
_IQ3: Final = np.array([-63, -40, -23, -10, 1, 13, 28, 47], np.float32)
_IQ5: Final = np.array(
    [
        *(-126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6),
        *(-1, 5, 11, 17, 23, 29, 36, 43, 51, 59, 68, 77, 87, 97, 109, 121),
    ],
    np.float32,
)
_IQ6: Final = np.array(
    [
        *(-127, -121, -115, -109, -104, -98, -93, -88, -84, -79, -74, -70, -66, -62, -58, -54),
        *(-51, -47, -44, -40, -37, -34, -31, -28, -25, -22, -19, -16, -13, -11, -8, -5),
        *(-2, 0, 3, 6, 9, 12, 14, 17, 20, 23, 27, 30, 33, 36, 40, 44),
        *(47, 51, 55, 59, 63, 68, 72, 77, 82, 87, 92, 98, 103, 109, 115, 121),
    ],
    np.float32,
)

_SHIFTS: Final = {2: 5, 3: 4, 4: 4, 5: 2, 6: 1}
"""By how much the second table of a type of so many bits lies above the first."""


def _shifted(steps: Floats, shifts: NDArray[np.integer], bits: int) -> Scales:
    """Steps, and the offsets of groups whose bit in `shifts` says which table they have."""
    return steps, steps * (np.float32(_SHIFTS[bits]) * shifts.astype(np.float32))


def _u16_bits(blocks: Bytes, start: int) -> Bytes:
    """The bits of a little-endian u16 of each block [rows, blocks, 16], the lowest first."""
    return np.unpackbits(blocks[..., start : start + 2], axis=-1, bitorder="little")


def _low_scales(packed: Bytes) -> Bytes:
    """Four bits a scale, the low nibble first: twice as many as bytes."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)


# --- a scale for 16 weights -------------------------------------------------------------------------


def _scales_iq2_k(blocks: Bytes) -> Scales:
    scales = _low_scales(blocks[..., 4:12]).astype(np.float32) - np.float32(8)
    return _shifted(f16(blocks, 0) * scales, _u16_bits(blocks, 2), 2)


def _pack_iq2_k(blocks: Bytes, codes: Bytes) -> None:
    crumbs(blocks, 12, codes)


def _scales_iq3_k(blocks: Bytes) -> Scales:
    """Odd numbers whose signs are bits of a u16."""
    signs = np.float32(1) - np.float32(2) * _u16_bits(blocks, 4)
    scales = np.float32(2) * _low_scales(blocks[..., 6:14]) + np.float32(1)
    return _shifted(f16(blocks, 0) * (scales * signs), _u16_bits(blocks, 2), 3)


def _pack_iq3_k(blocks: Bytes, codes: Bytes) -> None:
    crumbs(blocks, 14, codes)
    single_bits(blocks, 78, codes, 2)


def _scales_of_six_bits(blocks: Bytes) -> Floats:
    high = np.stack([blocks[..., 4:8] >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    scales = _low_scales(blocks[..., 8:16]) | high.reshape(*blocks.shape[:2], 16) << 4
    return f16(blocks, 0) * (scales.astype(np.float32) - np.float32(32))


def _scales_iq4_k(blocks: Bytes) -> Scales:
    return _shifted(_scales_of_six_bits(blocks), _u16_bits(blocks, 2), 4)


def _pack_iq4_k(blocks: Bytes, codes: Bytes) -> None:
    nibbles_of_32(blocks, 16, codes)


def _scales_iq5_k(blocks: Bytes) -> Scales:
    return _shifted(_scales_of_six_bits(blocks), _u16_bits(blocks, 2), 5)


def _pack_iq5_k(blocks: Bytes, codes: Bytes) -> None:
    nibbles_of_64(blocks, 16, codes)
    single_bits(blocks, 144, codes, 4)


def _scales_iq6_k(blocks: Bytes) -> Scales:
    scales = np.ascontiguousarray(blocks[..., 4:20]).view(np.int8)
    return _shifted(f16(blocks, 0) * scales, _u16_bits(blocks, 2), 6)


def _pack_iq6_k(blocks: Bytes, codes: Bytes) -> None:
    nibbles_of_64(blocks, 20, codes)
    crumbs(blocks, 148, codes, 4)


# --- a scale for 32 weights, times the scale of the row ---------------------------------------------


def _scales_iq2_ks(blocks: Bytes) -> Scales:
    bits = _u16_bits(blocks, 0)
    scales = _low_scales(blocks[..., 2:6]) | bits[..., 8:] << 4
    return _shifted(scales.astype(np.float32) - np.float32(16), bits[..., :8], 2)


def _pack_iq2_ks(blocks: Bytes, codes: Bytes) -> None:
    crumbs(blocks, 6, codes)


def _scales_iq3_ks(blocks: Bytes) -> Scales:
    bits = _u16_bits(blocks, 0)
    low = np.concatenate([blocks[..., 2:6] & 15, blocks[..., 2:6] >> 4], axis=-1)
    scales = low | bits[..., :8] << 4
    return _shifted(scales.astype(np.float32) - np.float32(16), bits[..., 8:], 3)


def _pack_iq3_ks(blocks: Bytes, codes: Bytes) -> None:
    crumbs(blocks, 6, codes)
    single_bits(blocks, 70, codes, 2)


def _scales_iq4_ks(blocks: Bytes) -> Scales:
    """Odd numbers; the bit that they do not need says which table the group has."""
    scales = (blocks[..., :8] & 254).astype(np.float32) - np.float32(127)
    return _shifted(scales, blocks[..., :8] & 1, 4)


def _pack_iq4_ks(blocks: Bytes, codes: Bytes) -> None:
    nibbles_of_32(blocks, 8, codes)


def _scales_iq5_ks(blocks: Bytes) -> Scales:
    scales = (blocks[..., :8] & 254).astype(np.float32) - np.float32(127)
    return _shifted(scales, blocks[..., :8] & 1, 5)


def _pack_iq5_ks(blocks: Bytes, codes: Bytes) -> None:
    nibbles_of_64(blocks, 8, codes)
    single_bits(blocks, 136, codes, 4)


# --- a block of 32 ----------------------------------------------------------------------------------


def _pack_q6_0(blocks: Bytes, codes: Bytes) -> None:
    """The two high bits of elements that are 8 apart share a byte, in the order 0, 16, 8, 24."""
    high = codes.reshape(*codes.shape[:2], 4, 8) >> 4
    shifts = np.array([0, 4, 2, 6], np.uint8)[:, None]
    blocks[..., 2:10] = np.bitwise_or.reduce(high << shifts, axis=-2)
    nibbles(blocks, 10, codes)


IK_GRIDS: Final = {
    "iq2_k": Grid(16, 4, _scales_iq2_k, _pack_iq2_k, _IQ2),
    "iq3_k": Grid(16, 8, _scales_iq3_k, _pack_iq3_k, _IQ3),
    "iq4_k": Grid(16, 16, _scales_iq4_k, _pack_iq4_k, IQ4),
    "iq5_k": Grid(16, 32, _scales_iq5_k, _pack_iq5_k, _IQ5),
    "iq6_k": Grid(16, 64, _scales_iq6_k, _pack_iq6_k, _IQ6),
    "iq2_ks": Grid(32, 4, _scales_iq2_ks, _pack_iq2_ks, _IQ2, np.float16),
    "iq3_ks": Grid(32, 8, _scales_iq3_ks, _pack_iq3_ks, _IQ3, np.float16),
    "iq4_ks": Grid(32, 16, _scales_iq4_ks, _pack_iq4_ks, IQ4, np.float32),
    "iq5_ks": Grid(32, 32, _scales_iq5_ks, _pack_iq5_ks, _IQ5, np.float32),
    "q6_0": Grid(32, 64, lambda blocks: symmetric(f16(blocks, 0), 32), _pack_q6_0),
}
"""The grids by type."""
