"""The table of types against libggml and gguf-py, and the arithmetic of sizes."""

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import pytest

from quantmill.engine.ggml import requires_imatrix
from quantmill.errors import QuantmillError
from quantmill.formats.types import (
    BY_ID,
    IK_TYPES,
    TYPES,
    WRITABLE,
    fallback,
    is_quantized,
    named,
    needs_imatrix,
    row_bytes,
    tensor_bytes,
    writable,
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
    ("expected", "columns", "given"),
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
def test_fallbacks(expected: str, columns: int, given: str) -> None:
    assert fallback(expected, columns) == given


def test_a_type_without_fallback_is_refused() -> None:
    with pytest.raises(QuantmillError, match="width 96 is no multiple of 64, and nvfp4 has no fallback"):
        fallback("nvfp4", 96)


def test_what_needs_an_imatrix_can_be_written() -> None:
    needing = {name for name in TYPES if needs_imatrix(name)}
    assert needing == {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"}
    assert needing < WRITABLE
    assert not {"q8_1", "q8_K", "i8"} & WRITABLE


@pytest.mark.parametrize("name", ["token_embd.weight", "per_layer_token_embd.weight", "output.weight"])
def test_what_is_exempt_still_needs_what_its_quantizer_needs(name: str) -> None:
    for kind in WRITABLE:
        assert needs_imatrix(kind, name) == requires_imatrix(kind)
        assert needs_imatrix(kind, "blk.0.output.weight") == needs_imatrix(kind)


def test_types_of_ik_add_bytes_to_a_row() -> None:
    # ggml_row_size of ik-llama-cpp-python 0.1.5 at a width of 2560
    assert {name: row_bytes(name, 2560) for name in IK_TYPES} == {
        "q6_0": 2080,
        "iq2_k": 760,
        "iq3_k": 1100,
        "iq4_k": 1440,
        "iq5_k": 1760,
        "iq6_k": 2120,
        "iq4_ks": 1364,
        "iq2_ks": 702,
        "iq4_kss": 1284,
        "q8_KV": 2568,
        "iq5_ks": 1684,
        "iq2_kt": 684,
        "iq3_kt": 1004,
        "iq4_kt": 1284,
        "iq3_ks": 1022,
        "iq2_kl": 862,
        "iq1_kt": 564,
    }
    assert not IK_TYPES.keys() & TYPES.keys()
    assert not {kind.id for kind in IK_TYPES.values()} & BY_ID.keys()


def test_each_engine_writes_its_own_types() -> None:
    assert writable("mainline") == WRITABLE
    assert writable("ik") - writable("mainline") == IK_TYPES.keys()
    assert {"q4_K", "iq4_kt"} <= writable("ik") and "nvfp4" not in writable("ik")


def test_names_in_any_case() -> None:
    assert (named("Q4_k"), named("IQ4_KT"), named("q8_kv"), named("Q4_K_M")) == (
        "q4_K",
        "iq4_kt",
        "q8_KV",
        None,
    )


def test_fallbacks_of_ik() -> None:
    assert [fallback(kind, 576, "ik") for kind in ("iq4_kt", "iq4_k", "iq5_k", "q3_K", "iq6_k", "q4_K")] == [
        "iq4_nl",
        "q5_0",
        "q6_0",
        "iq4_nl",
        "q8_0",
        "q5_0",
    ]
    assert fallback("q5_K", 576) == "q5_1"
