"""What the layouts of ggml's quantized types have in common: blocks, their scales, and packed codes."""

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

IQ4: Final = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The 16 uneven values of the iq4 types (`kvalues_iq4nl`)."""


@dataclass(frozen=True)
class Grid:
    """A type's grid: `group` elements share a scale, a code has one of `levels` values.

    `scales` gives steps and offsets [rows, blocks, groups of a block] of blocks [rows, blocks, bytes]. A
    value is offset + step * code; with `values` [levels], ascending, offset + step * values[code].
    `pack` writes codes [rows, blocks, elements] into the blocks. With `row_scale`, the type of a scale that
    stands before a row's blocks, this multiplies steps and offsets.
    """

    group: int
    levels: int
    scales: Callable[[Bytes], Scales]
    pack: Callable[[Bytes, Bytes], None]
    values: Floats | None = None
    row_scale: type[np.float16 | np.float32] | None = None


def blocks_of(data: Bytes, type_name: str, rows: int) -> Bytes:
    """A view of a type's data as [rows, blocks, bytes of a block], without what stands before the blocks."""
    kind = known(type_name)
    return data.reshape(rows, -1)[:, kind.row_bytes :].reshape(rows, -1, kind.block_bytes)


def f16(blocks: Bytes, start: int) -> Floats:
    """The f16 at a byte of each block, f32 [rows, blocks, 1]."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16).astype(np.float32)


def symmetric(steps: Floats, zero: int) -> Scales:
    """Of a type whose code `zero` is the value 0."""
    return steps, np.float32(-zero) * steps


def nibbles(blocks: Bytes, start: int, codes: Bytes) -> None:
    """The low four bits of 32 codes: of the first half the low nibbles, of the second the high ones."""
    blocks[..., start : start + 16] = (codes[..., :16] & 15) | (codes[..., 16:] & 15) << 4


def nibbles_of_32(blocks: Bytes, start: int, codes: Bytes) -> None:
    """The low four bits of 256 codes: each byte has those of two elements that are 16 apart."""
    pairs = codes.reshape(*codes.shape[:2], 8, 2, 16) & 15
    blocks[..., start : start + 128] = (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(
        *codes.shape[:2], 128
    )


def nibbles_of_64(blocks: Bytes, start: int, codes: Bytes) -> None:
    """The low four bits of 256 codes: each byte has those of two elements that are 32 apart."""
    pairs = codes.reshape(*codes.shape[:2], 4, 2, 32) & 15
    blocks[..., start : start + 128] = (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(
        *codes.shape[:2], 128
    )


def crumbs(blocks: Bytes, start: int, codes: Bytes, bit: int = 0) -> None:
    """Two bits of 256 codes, from `bit` up: each byte has those of four elements that are 32 apart."""
    quarters = codes.reshape(*codes.shape[:2], 2, 4, 32) >> bit & 3
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    blocks[..., start : start + 64] = np.bitwise_or.reduce(quarters << shifts, axis=-2).reshape(
        *codes.shape[:2], 64
    )


def single_bits(blocks: Bytes, start: int, codes: Bytes, bit: int) -> None:
    """A bit of 256 codes: each byte has those of eight elements that are 32 apart."""
    bits = codes.reshape(*codes.shape[:2], 8, 32) >> bit & 1
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    blocks[..., start : start + 32] = np.bitwise_or.reduce(bits << shifts, axis=-2)
