"""The table of types against libggml and gguf-py, and the arithmetic of sizes."""

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import pytest

from quantmill.errors import QuantmillError
from quantmill.model.types import (
    BY_ID,
    TYPES,
    WRITABLE,
    fallback,
    is_quantized,
    needs_imatrix,
    row_bytes,
    tensor_bytes,
)

GGML_TYPE_COUNT = 43


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_is_quantized.restype = ctypes.c_bool
    return library


def test_the_table_is_libggmls(ggml: ctypes.CDLL) -> None:
    native = {
        i: (ggml.ggml_type_name(i).decode(), ggml.ggml_blck_size(i), ggml.ggml_type_size(i))
        for i in range(GGML_TYPE_COUNT)
        if ggml.ggml_blck_size(i) > 0
    }
    assert {t.id: (t.name, t.block_elements, t.block_bytes) for t in TYPES.values()} == native
    assert {i: is_quantized(t.name) for i, t in BY_ID.items()} == {
        i: ggml.ggml_is_quantized(i) for i in native
    }


def test_the_table_agrees_with_gguf_py() -> None:
    theirs = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    # gguf-py still has the old block of q8_1 (two f32); no file holds it
    shared = (theirs.keys() & BY_ID.keys()) - {TYPES["q8_1"].id}
    assert len(shared) > 30
    assert {i: (BY_ID[i].block_elements, BY_ID[i].block_bytes) for i in shared} == {
        i: theirs[i] for i in shared
    }


def test_sizes() -> None:
    assert row_bytes("q4_K", 512) == 288
    assert tensor_bytes("q8_0", (576, 49152)) == 30_081_024
    assert tensor_bytes("iq2_xs", (256, 3, 8)) == 74 * 24
    assert tensor_bytes("f32", (5,)) == 20
    with pytest.raises(QuantmillError, match="576 elements is no multiple of q4_K's block of 256"):
        row_bytes("q4_K", 576)


@pytest.mark.parametrize(
    ("wanted", "columns", "given"),
    [
        ("q4_K", 512, "q4_K"),
        ("q4_K", 576, "q5_0"),
        ("q5_K", 576, "q5_1"),
        ("q6_K", 576, "q8_0"),
        ("q3_K", 576, "q4_0"),
        ("iq2_xs", 576, "iq4_nl"),
        ("iq4_xs", 704, "iq4_nl"),
        ("q4_K", 100, "f16"),
        ("q8_0", 100, "f16"),
        ("f16", 100, "f16"),
    ],
)
def test_fallbacks(wanted: str, columns: int, given: str) -> None:
    assert fallback(wanted, columns) == given


def test_a_type_without_fallback_is_refused() -> None:
    with pytest.raises(QuantmillError, match="width 96 is no multiple of 64, and nvfp4 has no fallback"):
        fallback("nvfp4", 96)


def test_what_needs_an_imatrix_can_be_written() -> None:
    needing = {name for name in TYPES if needs_imatrix(name)}
    assert needing == {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"}
    assert needing < WRITABLE
    assert not {"q8_1", "q8_K", "i8"} & WRITABLE
