"""The ggml types that mainline llama.cpp knows, and the arithmetic of their sizes.

One static table, since `import gguf` costs a quarter of a second at every start
of a process; a test holds it equal to libggml and to gguf-py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final, NamedTuple

from quantmill.errors import QuantmillError


class GgmlType(NamedTuple):
    """A ggml type: its name as `ggml_type_name` gives it, its id, and its block."""

    name: str
    id: int
    block_elements: int
    block_bytes: int


_TABLE: Final = (
    ("f32", 0, 1, 4),
    ("f16", 1, 1, 2),
    ("q4_0", 2, 32, 18),
    ("q4_1", 3, 32, 20),
    ("q5_0", 6, 32, 22),
    ("q5_1", 7, 32, 24),
    ("q8_0", 8, 32, 34),
    ("q8_1", 9, 32, 36),
    ("q2_K", 10, 256, 84),
    ("q3_K", 11, 256, 110),
    ("q4_K", 12, 256, 144),
    ("q5_K", 13, 256, 176),
    ("q6_K", 14, 256, 210),
    ("q8_K", 15, 256, 292),
    ("iq2_xxs", 16, 256, 66),
    ("iq2_xs", 17, 256, 74),
    ("iq3_xxs", 18, 256, 98),
    ("iq1_s", 19, 256, 50),
    ("iq4_nl", 20, 32, 18),
    ("iq3_s", 21, 256, 110),
    ("iq2_s", 22, 256, 82),
    ("iq4_xs", 23, 256, 136),
    ("i8", 24, 1, 1),
    ("i16", 25, 1, 2),
    ("i32", 26, 1, 4),
    ("i64", 27, 1, 8),
    ("f64", 28, 1, 8),
    ("iq1_m", 29, 256, 56),
    ("bf16", 30, 1, 2),
    ("tq1_0", 34, 256, 54),
    ("tq2_0", 35, 256, 66),
    ("mxfp4", 39, 32, 17),
    ("nvfp4", 40, 64, 36),
    ("q1_0", 41, 128, 18),
    ("q2_0", 42, 64, 18),
)

TYPES: Final[dict[str, GgmlType]] = {row[0]: GgmlType(*row) for row in _TABLE}
BY_ID: Final[dict[int, GgmlType]] = {row[1]: GgmlType(*row) for row in _TABLE}

_PLAIN: Final = frozenset(("f32", "f16", "bf16", "f64", "i8", "i16", "i32", "i64"))
_NOT_WRITTEN: Final = frozenset(("q8_1", "q8_K", "f64", "i8", "i16", "i32", "i64"))

WRITABLE: Final = frozenset(TYPES) - _NOT_WRITTEN
"""The types that `ggml_quantize_chunk` writes; any other aborts the process."""

_NEED_IMATRIX: Final = frozenset(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"))

_FALLBACKS: Final = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_0", "q2_K", "q3_K", "tq1_0", "tq2_0"), "q4_0"),
    "q4_K": "q5_0",
    "q5_K": "q5_1",
    "q6_K": "q8_0",
}


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of one row of `columns` elements, which must be whole blocks."""
    ggml_type = TYPES[type_name]
    blocks, rest = divmod(columns, ggml_type.block_elements)
    if rest:
        raise QuantmillError(
            f"a row of {columns} elements is no multiple of {type_name}'s block of {ggml_type.block_elements}"
        )
    return blocks * ggml_type.block_bytes


def tensor_bytes(type_name: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of `shape` (ne0, the row's width, first), without padding."""
    return row_bytes(type_name, shape[0]) * prod(shape[1:])


def fits(type_name: str, columns: int) -> bool:
    """Whether rows of `columns` elements are whole blocks of the type."""
    return columns % TYPES[type_name].block_elements == 0


def fallback(type_name: str, columns: int) -> str:
    """The type a tensor gets when `type_name` is wanted: the same where its rows fit.

    Source: `tensor_type_fallback` of llama.cpp's src/llama-quant.cpp. Raises
    QuantmillError where llama.cpp defines no fallback.
    """
    if fits(type_name, columns):
        return type_name
    second = _FALLBACKS.get(type_name)
    if second is None:
        if TYPES[type_name].block_elements > 32:
            raise QuantmillError(
                f"width {columns} is no multiple of {TYPES[type_name].block_elements},"
                f" and {type_name} has no fallback",
                cure="choose another type for it",
            )
        second = type_name
    return second if fits(second, columns) else "f16"


def needs_imatrix(type_name: str) -> bool:
    """Whether quantizing to the type without importance values is refused.

    Source: `tensor_requires_imatrix` of src/llama-quant.cpp, which besides
    exempts token_embd and output, and includes q2_K within Q2_K_S.
    """
    return type_name in _NEED_IMATRIX


def is_quantized(type_name: str) -> bool:
    """Whether the type packs elements into blocks (`ggml_is_quantized`)."""
    return type_name not in _PLAIN
