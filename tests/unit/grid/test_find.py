"""Which tensors of a model lie on a grid, and that little is looked at where none does."""

from pathlib import Path

import numpy as np
import pytest

import grids as example
from quantmill.formats.ggufio import read_header
from quantmill.grid import find

MOE = Path(__file__).parents[2] / "data" / "tiny-moe.gguf"


@pytest.fixture(scope="module")
def qat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example.write(tmp_path_factory.mktemp("qat") / "qat.gguf")


def test_all_matrices_of_a_qat_model(qat: Path) -> None:
    header = read_header(qat)
    matrices = {tensor.name for tensor in header.tensors if len(tensor.shape) > 1}
    assert find.grids(header, 2) == dict.fromkeys(matrices, "q4_0")


def test_a_block_off_in_the_middle_of_a_tensor(qat: Path, tmp_path: Path) -> None:
    header = read_header(qat)
    tensor = next(tensor for tensor in header.tensors if tensor.name == "output.weight")
    data = bytearray(qat.read_bytes())
    at = tensor.offset + tensor.bytes // 3 // 64 * 64
    data[at : at + 64] = example.as_bf16(np.random.default_rng(0).standard_normal(32)).tobytes()
    off = tmp_path / "off.gguf"
    off.write_bytes(data)
    found = find.grids(read_header(off), 1)
    assert "output.weight" not in found and found["token_embd.weight"] == "q4_0"


def test_of_an_ordinary_model_a_few_blocks_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> bool:
        raise AssertionError("a block fits by chance")

    monkeypatch.setattr(find, "fits", never)
    assert find.grids(read_header(MOE), 1) == {}


def test_zeros_tell_nothing(tmp_path: Path) -> None:
    empty = example.write(tmp_path / "zeros.gguf", np.zeros_like)
    assert find.grids(read_header(empty), 1) == {}


def test_a_grid_of_more_bits_is_found_too(tmp_path: Path) -> None:
    """Values of q8_0 are not on the grid of fewer bits."""

    def to_q8_0(values: np.ndarray) -> np.ndarray:
        blocks = values.reshape(-1, 32)
        scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
        return (np.rint(blocks / np.where(scales == 0, 1, scales)) * scales).reshape(values.shape)

    model = example.write(tmp_path / "q8.gguf", to_q8_0)
    assert set(find.grids(read_header(model), 2).values()) == {"q8_0"}
