"""ggml's types of codebooks: an entry gives 4 (iq3) or 8 (iq2) neighbouring weights their magnitudes.

As in `grids`, scales are read from data that ggml quantized; entries and signs are written beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import kernel
from quantmill.quantize.layouts import Bytes, Floats, blocks_of, f16

Entries = NDArray[np.uint16]


@dataclass(frozen=True)
class Book:
    """A type's codebook: `group` elements share a scale.

    With `even`, of eight weights an even number are negative. `scales` gives steps [rows, blocks, groups of
    a block] of blocks [rows, blocks, bytes]: a magnitude is step * that of the entry. `pack` writes entries
    [rows, blocks, entries of a block] and signs [rows, blocks, 32] into the blocks.
    """

    group: int
    even: bool
    scales: Callable[[Bytes], Floats]
    pack: Callable[[Bytes, Entries, Bytes], None]


def steps(data: Bytes, type_name: str, rows: int) -> Floats:
    """Of rows of a type's data: steps [groups of a row, rows]."""
    return BOOKS[type_name].scales(blocks_of(data, type_name, rows)).reshape(rows, -1).T


def packed(data: Bytes, type_name: str, entries: Entries, signs: Bytes) -> Bytes:
    """A copy of rows of a type's data with these entries [rows, columns / length], as the kernel numbers
    them, and signs [rows, columns / 8], a bit a weight.
    """
    blocks = blocks_of(data, type_name, len(entries)).copy()
    numbers = _numbers(type_name)[entries].reshape(*blocks.shape[:2], -1)
    BOOKS[type_name].pack(blocks, numbers, signs.reshape(*blocks.shape[:2], -1))
    return blocks.reshape(-1)


@cache
def codebook(type_name: str) -> kernel.Codebook:
    """The entries in the kernel's form."""
    return kernel.Codebook(table(type_name)[_numbers(type_name)], BOOKS[type_name].even)


@cache
def table(type_name: str) -> Floats:
    """The magnitudes of a type's entries [entries, length], as gguf-py has them."""
    from gguf import quants

    made: Any = getattr(quants, type_name.upper())
    made.init_grid()
    return np.asarray(made.grid, np.float32).reshape(made.grid_shape)


@cache
def _numbers(type_name: str) -> Entries:
    """ggml's numbers of the entries in the kernel's order."""
    return np.lexsort(table(type_name).T[::-1]).astype(np.uint16)


def _nibbles(scales: Bytes) -> Floats:
    """The low, then the high four bits of each byte."""
    return np.stack([scales & 15, scales >> 4], axis=-1).reshape(*scales.shape[:2], -1).astype(np.float32)


def _words(blocks: Bytes, start: int, end: int) -> NDArray[np.uint32]:
    return np.ascontiguousarray(blocks[..., start:end]).view("<u4")


def _halves(scales: Floats) -> Floats:
    return np.float32(0.5) + scales


def _with_signs(signs: Bytes, scales: NDArray[np.uint32]) -> Bytes:
    """Words with the scales' four bits, and of 32 signs the first seven of each eight: the last is even."""
    sevens = (signs & 127).reshape(*signs.shape[:2], -1, 4).astype(np.uint32)
    shifts = np.array([0, 7, 14, 21], np.uint32)
    words = np.bitwise_or.reduce(sevens << shifts, axis=-1) | scales & np.uint32(0xF0000000)
    return words.astype("<u4").view(np.uint8)


# --- eight weights an entry -------------------------------------------------------------------------


def _scales_iq2_xxs(blocks: Bytes) -> Floats:
    scales = (_words(blocks, 2, 66)[..., 1::2] >> 28).astype(np.float32)
    return f16(blocks, 0) * _halves(scales) * np.float32(0.25)


def _pack_iq2_xxs(blocks: Bytes, entries: Entries, signs: Bytes) -> None:
    words = _words(blocks, 2, 66)
    words[..., 0::2] = np.ascontiguousarray(entries.astype(np.uint8)).view("<u4")
    words[..., 1::2] = _with_signs(signs, words[..., 1::2]).view("<u4")
    blocks[..., 2:66] = words.view(np.uint8)


def _scales_iq2_xs(blocks: Bytes) -> Floats:
    return f16(blocks, 0) * _halves(_nibbles(blocks[..., 66:74])) * np.float32(0.25)


def _pack_iq2_xs(blocks: Bytes, entries: Entries, signs: Bytes) -> None:
    words = entries | (signs & 127).astype(np.uint16) << 9
    blocks[..., 2:66] = words.astype("<u2").view(np.uint8)


def _scales_iq2_s(blocks: Bytes) -> Floats:
    return f16(blocks, 0) * _halves(_nibbles(blocks[..., 74:82])) * np.float32(0.25)


def _pack_iq2_s(blocks: Bytes, entries: Entries, signs: Bytes) -> None:
    blocks[..., 2:34] = entries & 255
    blocks[..., 34:66] = signs
    fours = (entries >> 8).astype(np.uint8).reshape(*entries.shape[:2], 8, 4)
    blocks[..., 66:74] = np.bitwise_or.reduce(fours << np.array([0, 2, 4, 6], np.uint8), axis=-1)


# --- four weights an entry --------------------------------------------------------------------------


def _scales_iq3_xxs(blocks: Bytes) -> Floats:
    scales = (_words(blocks, 66, 98) >> 28).astype(np.float32)
    return f16(blocks, 0) * _halves(scales) * np.float32(0.5)


def _pack_iq3_xxs(blocks: Bytes, entries: Entries, signs: Bytes) -> None:
    blocks[..., 2:66] = entries
    blocks[..., 66:98] = _with_signs(signs, _words(blocks, 66, 98))


def _scales_iq3_s(blocks: Bytes) -> Floats:
    return f16(blocks, 0) * (1 + 2 * _nibbles(blocks[..., 106:110]))


def _pack_iq3_s(blocks: Bytes, entries: Entries, signs: Bytes) -> None:
    blocks[..., 2:66] = entries & 255
    blocks[..., 66:74] = np.packbits((entries >> 8).astype(np.uint8), axis=-1, bitorder="little")
    blocks[..., 74:106] = signs


BOOKS: Final = {
    "iq2_xxs": Book(32, True, _scales_iq2_xxs, _pack_iq2_xxs),
    "iq2_xs": Book(16, True, _scales_iq2_xs, _pack_iq2_xs),
    "iq2_s": Book(16, False, _scales_iq2_s, _pack_iq2_s),
    "iq3_xxs": Book(32, True, _scales_iq3_xxs, _pack_iq3_xxs),
    "iq3_s": Book(32, False, _scales_iq3_s, _pack_iq3_s),
}
"""The codebooks by type."""
