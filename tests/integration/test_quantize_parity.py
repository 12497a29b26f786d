"""The same bytes as llama_model_quantize, tensor by tensor, for every type that it can write."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import native
from quantmill.engine import ggml
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio, types
from quantmill.quantize import kernels

TESTS = Path(__file__).parents[1]
LLAMA = TESTS / "data/tiny-llama.gguf"
MOE = TESTS / "data/tiny-moe.gguf"
Q8_0_FILE = 7


def _importance(header: ggufio.Header) -> dict[str, np.ndarray]:
    """Made-up importance values for every weight: [matrices * columns], heavy-tailed as real ones are."""
    random = np.random.default_rng(7)
    return {
        t.name: random.lognormal(0, 2, t.shape[0] * int(np.prod(t.shape[2:], dtype=int))).astype(np.float32)
        for t in header.tensors
        if len(t.shape) > 1
    }


def _data(header: ggufio.Header, tensor: ggufio.Tensor) -> np.ndarray:
    return np.memmap(header.path, np.uint8, "r", tensor.offset, (tensor.bytes,))


def _compare(source: Path, made: Path, importance: dict[str, np.ndarray]) -> set[str]:
    """Assert that our conversion of each changed tensor gives the bytes in `made`; the types compared."""
    before, after = ggufio.read_header(source), ggufio.read_header(made)
    originals, compared = {t.name: t for t in before.tensors}, set()
    with ThreadPoolExecutor(2) as pool:
        for tensor in after.tensors:
            original = originals[tensor.name]
            if tensor.type == original.type:
                continue
            weights = importance.get(tensor.name)
            if weights is not None:
                weights = weights.reshape(-1, tensor.shape[0])
            ours = ggml.Conversion(
                pool, 2, _data(before, original), original.type, tensor.type, tensor.shape, weights
            ).result()
            assert np.array_equal(ours, _data(after, tensor)), f"{tensor.name} at {tensor.type}"
            compared.add(tensor.type)
    return compared


CASES = [(name, True) for name in sorted(types.WRITABLE - {"f16"})]
CASES += [(name, False) for name, _ in CASES if not types.needs_imatrix(name)]


@pytest.mark.parametrize(("type_name", "with_imatrix"), CASES)
def test_same_bytes_for_every_type(tmp_path, type_name, with_imatrix):
    importance, npz = {}, None
    if with_imatrix:
        importance, npz = _importance(ggufio.read_header(LLAMA)), tmp_path / "imatrix.npz"
        np.savez(npz, **importance)
    made = tmp_path / "made.gguf"
    native.quantize(LLAMA, made, Q8_0_FILE, ggml.type_ids()[type_name], npz)
    assert _compare(LLAMA, made, importance) == {type_name}


@pytest.mark.parametrize("type_name", ["q4_K", "iq2_xs"])
def test_experts_have_their_own_importance(tmp_path, type_name):
    importance, npz = _importance(ggufio.read_header(MOE)), tmp_path / "imatrix.npz"
    np.savez(npz, **importance)
    made = tmp_path / "made.gguf"
    native.quantize(MOE, made, Q8_0_FILE, ggml.type_ids()[type_name], npz)
    assert type_name in _compare(MOE, made, importance)


@pytest.mark.parametrize("middle", ["q4_0", "q4_1", "q5_K", "bf16"])
def test_quantized_sources(tmp_path, middle):
    """A source that is itself quantized is dequantized as llama.cpp does."""
    source, made = tmp_path / "source.gguf", tmp_path / "made.gguf"
    native.quantize(LLAMA, source, Q8_0_FILE, ggml.type_ids()[middle], None)
    native.quantize(source, made, Q8_0_FILE, ggml.type_ids()["q4_K"], None)
    assert _compare(source, made, {}) == {"q4_K"}


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_bytes(threads):
    header = ggufio.read_header(LLAMA)
    tensor = next(t for t in header.tensors if t.name == "blk.0.ffn_down.weight")
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(2) as two:
        args = (_data(header, tensor), tensor.type, "q4_K", tensor.shape, None)
        assert np.array_equal(
            ggml.Conversion(pool, threads, *args).result(), ggml.Conversion(two, 2, *args).result()
        )


def test_types_that_cannot_be_written_are_refused():
    with pytest.raises(QuantmillError, match="cannot be quantized to"):
        kernels.task("x", "", "f32", "q8_1", (256, 1), None)
    with ThreadPoolExecutor(1) as pool, pytest.raises(QuantmillError, match="needs an importance matrix"):
        ggml.Conversion(pool, 1, np.zeros(1024, np.uint8), "f32", "iq2_xxs", (256, 1), None)
