"""A model in several files: the bytes that llama-gguf-split makes, and what is refused."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio
from quantmill.formats.plan import PlanRow
from quantmill.quantize.split import files, parts

LLAMA = Path(__file__).parents[2] / "data" / "tiny-llama.gguf"

# sha256 of what `llama-gguf-split --split --split-max-size 2M tiny-llama.gguf x` wrote
# (llama-cpp-python 0.3.36).
GOLDEN = {
    "x-00001-of-00004.gguf": "0bbe7ebf623265baa8a9843acc3b1ca2d872be2d721ddb01dfd1667708bc5273",
    "x-00002-of-00004.gguf": "730cd841714b7b32b0272e69ea4b76ceec1ae000427ded5c89a9d468ac39beb5",
    "x-00003-of-00004.gguf": "e7dc6dcf266aca9072c8e49e352662c1d6aae89c41d03487d3ff16d253e2401d",
    "x-00004-of-00004.gguf": "3fd46777d2810f7e94be807394884b17dc88d7660cdb1e1bf48a2d6d84a599c6",
}


def rows(header: ggufio.Header) -> list[PlanRow]:
    """The model as it is, as a plan."""
    return [PlanRow(t.name, "", -1, t.shape, t.type, t.type, t.bytes, "") for t in header.tensors]


def test_the_files_are_llama_gguf_splits_own() -> None:
    header = ggufio.read_header(LLAMA)
    data = np.memmap(LLAMA, np.uint8, "r")
    tensors = iter(header.tensors)
    made = {}
    for name, head, count, _ in files("x", header.kv, rows(header), 2 * 10**6):
        digest = hashlib.sha256(head)
        for tensor in (next(tensors) for _ in range(count)):
            digest.update(data[tensor.offset : tensor.offset + ggufio.padded(tensor.bytes)].tobytes())
        made[name] = digest.hexdigest()
    assert made == GOLDEN


def test_a_part_holds_no_more_than_it_may() -> None:
    listed = rows(ggufio.read_header(LLAMA))
    for most in (300_000, 10**6, 3 * 10**6):
        result = parts(listed, most)
        sizes = [sum(ggufio.padded(row.bytes) for row in part) for part in result]
        assert all(size <= most or len(part) == 1 for size, part in zip(sizes, result, strict=True))
        # the next part's first tensor would have been too much
        heads = [ggufio.padded(part[0].bytes) for part in result[1:]]
        assert all(size + head > most for size, head in zip(sizes, heads, strict=False))
        assert [row.name for part in result for row in part] == [row.name for row in listed]


def test_a_tensor_that_is_too_large_is_a_part_of_its_own() -> None:
    result = parts(rows(ggufio.read_header(LLAMA)), 1)
    assert [len(part) for part in result] == [1] * len(result)


def test_a_model_that_fits_is_one_file_and_says_nothing_of_parts() -> None:
    header = ggufio.read_header(LLAMA)
    ((name, head, count, _),) = files("x", header.kv, rows(header), 10**7)
    assert (name, count) == ("x.gguf", len(header.tensors))
    assert LLAMA.read_bytes().startswith(head)


def test_more_files_than_can_be_counted_are_refused() -> None:
    row = rows(ggufio.read_header(LLAMA))[0]
    many = [replace(row, name=f"t{n}") for n in range(1 << 16)]
    with pytest.raises(QuantmillError, match=r"^x: needs 65,536 files, .* 65,535 at most; give `split`"):
        files("x", {}, many, 1)


def test_a_folder_stands_for_the_first_file_in_it(tmp_path: Path) -> None:
    assert command.first_part(LLAMA) == LLAMA
    with pytest.raises(QuantmillError, match="holds no GGUF"):
        command.first_part(tmp_path)
    for number in (2, 1):
        (tmp_path / f"m-0000{number}-of-00002.gguf").touch()
    assert command.first_part(tmp_path).name == "m-00001-of-00002.gguf"
