"""The ggml types that mainline llama.cpp and ik_llama.cpp know, and the arithmetic of their sizes.

One static table, since `import gguf` costs a quarter of a second at every start
of a process; a test holds it equal to libggml and to gguf-py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final, NamedTuple

from quantmill.errors import QuantmillError


class GgmlType(NamedTuple):
    """A ggml type: its name as `ggml_type_name` gives it, its id, its block, and what it adds to a row."""

    name: str
    id: int
    block_elements: int
    block_bytes: int
    row_bytes: int = 0

    @property
    def bits(self) -> float:
        """Bits per weight of its blocks alone."""
        return 8 * self.block_bytes / self.block_elements


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

# ik_llama.cpp's own, as its libggml gives them (0.1.5 of ik-llama-cpp-python); its scale of a row
# stands before the row's blocks.
_IK_TABLE: Final = (
    ("q6_0", 133, 32, 26, 0),
    ("iq2_k", 137, 256, 76, 0),
    ("iq3_k", 138, 256, 110, 0),
    ("iq4_k", 139, 256, 144, 0),
    ("iq5_k", 140, 256, 176, 0),
    ("iq6_k", 141, 256, 212, 0),
    ("iq4_ks", 144, 256, 136, 4),
    ("iq2_ks", 145, 256, 70, 2),
    ("iq4_kss", 146, 256, 128, 4),
    ("q8_KV", 151, 32, 32, 8),
    ("iq5_ks", 152, 256, 168, 4),
    ("iq2_kt", 153, 256, 68, 4),
    ("iq3_kt", 154, 256, 100, 4),
    ("iq4_kt", 155, 256, 128, 4),
    ("iq3_ks", 156, 256, 102, 2),
    ("iq2_kl", 157, 256, 86, 2),
    ("iq1_kt", 158, 256, 56, 4),
)

IK_TYPES: Final[dict[str, GgmlType]] = {row[0]: GgmlType(*row) for row in _IK_TABLE}
"""The types that only ik_llama.cpp has."""

_LOWER: Final = {name.lower(): name for name in (*TYPES, *IK_TYPES)}

_PLAIN: Final = frozenset(("f32", "f16", "bf16", "f64", "i8", "i16", "i32", "i64"))
_NOT_WRITTEN: Final = frozenset(("q8_1", "q8_K", "f64", "i8", "i16", "i32", "i64"))

WRITABLE: Final = frozenset(TYPES) - _NOT_WRITTEN
"""The types that `ggml_quantize_chunk` writes; any other aborts the process."""

# What ik_llama.cpp has not: mainline's latest.
_NOT_IN_IK: Final = frozenset(("tq1_0", "tq2_0", "nvfp4", "q1_0", "q2_0"))

_NEED_IMATRIX: Final = frozenset(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"))
_NEED_IMATRIX_IK: Final = frozenset(("iq1_kt", "iq2_kt"))
_ABORT_WITHOUT: Final = frozenset(("iq1_s", "iq2_xxs", "iq2_xs"))  # ggml_quantize_requires_imatrix

FED_BACK: Final = frozenset(
    (
        *("q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
        *("iq4_nl", "iq4_xs", "mxfp4", "nvfp4"),
        *("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"),
    )
)
"""The types to which `rounding: gptq` rounds, of those that llama.cpp has."""

_FED_BACK_IK: Final = frozenset(
    (
        *("iq2_k", "iq3_k", "iq4_k", "iq5_k", "iq6_k"),
        *("iq2_ks", "iq3_ks", "iq4_ks", "iq5_ks", "q6_0"),
    )
)
"""Those that only ik_llama.cpp has. Its others have no code for each weight that is free of its neighbours':
`quantize.ik_grids` says of each why."""

NO_GRID: Final = "has no grid to which errors can be fed back"
"""What the other quantized types lack, in words."""

EXEMPT: Final = frozenset(("token_embd.weight", "per_layer_token_embd.weight", "output.weight"))
"""Tensors that llama.cpp quantizes without importance values: no imatrix has an entry of them."""

_FALLBACKS: Final = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_0", "q2_K", "q3_K", "tq1_0", "tq2_0"), "q4_0"),
    "q4_K": "q5_0",
    "q5_K": "q5_1",
    "q6_K": "q8_0",
}
_FALLBACKS_IK: Final = {
    **dict.fromkeys(("q2_K", "q3_K"), "iq4_nl"),
    **dict.fromkeys((name for name in IK_TYPES if name.startswith(("iq1", "iq2", "iq3"))), "iq4_nl"),
    **dict.fromkeys(("iq4_ks", "iq4_kss", "iq4_kt"), "iq4_nl"),
    **dict.fromkeys(("iq4_k", "iq5_ks"), "q5_0"),
    **dict.fromkeys(("iq5_k", "q5_K"), "q6_0"),
    "iq6_k": "q8_0",
}


def writable(engine: str) -> frozenset[str]:
    """The types that an engine (`mainline` or `ik`) quantizes to."""
    return WRITABLE if engine == "mainline" else WRITABLE - _NOT_IN_IK | IK_TYPES.keys()


def known(type_name: str) -> GgmlType:
    """The type of that name, of either engine."""
    return TYPES[type_name] if type_name in TYPES else IK_TYPES[type_name]


def named(name: str) -> str | None:
    """The type's own name for `name`, in any case, of either engine; None where there is none."""
    return _LOWER.get(name.lower())


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of one row of `columns` elements, which must be whole blocks."""
    ggml_type = known(type_name)
    blocks, rest = divmod(columns, ggml_type.block_elements)
    if rest:
        raise QuantmillError(
            f"a row of {columns} elements is no multiple of {type_name}'s block of {ggml_type.block_elements}"
        )
    return blocks * ggml_type.block_bytes + ggml_type.row_bytes


def tensor_bytes(type_name: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of `shape` (ne0, the row's width, first), without padding."""
    return row_bytes(type_name, shape[0]) * prod(shape[1:])


def fits(type_name: str, columns: int) -> bool:
    """Whether rows of `columns` elements are whole blocks of the type."""
    return columns % known(type_name).block_elements == 0


def fallback(type_name: str, columns: int, engine: str = "mainline") -> str:
    """The type a tensor gets when `type_name` is wanted: the same where its rows fit.

    Source: `tensor_type_fallback` of llama.cpp's src/llama-quant.cpp, and what
    ik_llama.cpp does in its place. Raises QuantmillError where llama.cpp
    defines no fallback.
    """
    if fits(type_name, columns):
        return type_name
    table = _FALLBACKS if engine == "mainline" else _FALLBACKS | _FALLBACKS_IK
    second = table.get(type_name)
    if second is None:
        if known(type_name).block_elements > 32:
            raise QuantmillError(
                f"width {columns} is no multiple of {known(type_name).block_elements},"
                f" and {type_name} has no fallback",
                cure="choose another type for it",
            )
        second = type_name
    return second if fits(second, columns) else "f16"


def needs_imatrix(type_name: str, tensor: str = "") -> bool:
    """Whether quantizing a tensor of this name to the type without importance values is refused.

    Source: `tensor_requires_imatrix` of src/llama-quant.cpp, which besides
    includes q2_K within Q2_K_S; it exempts some tensors, but the quantizers of a
    few types abort all the same.
    """
    if tensor in EXEMPT:
        return type_name in _ABORT_WITHOUT
    return type_name in _NEED_IMATRIX or type_name in _NEED_IMATRIX_IK


def fed_back(engine: str) -> frozenset[str]:
    """The types to which `rounding: gptq` rounds in an engine (`mainline` or `ik`)."""
    return FED_BACK if engine == "mainline" else FED_BACK - _NOT_IN_IK | _FED_BACK_IK


def takes_feedback(type_name: str, engine: str) -> bool:
    """Whether a file of `rounding: gptq` may have the type: it is in `fed_back`, or not quantized at all."""
    return type_name in fed_back(engine) or not is_quantized(type_name)


def is_quantized(type_name: str) -> bool:
    """Whether the type packs elements into blocks (`ggml_is_quantized`)."""
    return type_name not in _PLAIN
