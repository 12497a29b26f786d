"""safetensors: what is broken is refused in one line, what is written the package reads."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

import checkpoints
import limits
from quantmill.checkpoint.safetensors import Checkpoint, Tensor, Writer, read_header
from quantmill.errors import QuantmillError

INDEX = "model.safetensors.index.json"


def header(change: Callable[[dict[str, Any]], Any], data: bytes = bytes(16)) -> Callable[[Path], None]:
    """A file of two tensors of 8 bytes, with a change made to its header."""

    def write(path: Path) -> None:
        entries = {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F16", "shape": [2, 2], "data_offsets": [8, 16]},
        }
        change(entries)
        text = json.dumps(entries).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)

    return write


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "is cut short, or no safetensors file"),
    "four bytes": (lambda p: p.write_bytes(b"\1\0\0\0"), "is cut short, or no safetensors file"),
    "an absurd length": (lambda p: p.write_bytes(b"\xff" * 7 + b"\x7f" + b"{}"), "is cut short"),
    "a length past the end": (lambda p: p.write_bytes(b"\x09" + bytes(7) + b"{}"), "is cut short"),
    "no JSON": (lambda p: p.write_bytes(b"\x02" + bytes(7) + b"}{"), "has no valid header"),
    "no UTF-8": (lambda p: p.write_bytes(b"\x02" + bytes(7) + b"\xff\xfe"), "has no valid header"),
    "a deep list": (lambda p: p.write_bytes(b"\x0f\x27" + bytes(6) + b"[" * 9999), "has no valid header"),
    "a list": (lambda p: p.write_bytes(b"\x03" + bytes(7) + b"[1]"), "has no valid header"),
    "cut short": (header(lambda h: None, bytes(12)), "bytes, its header speaks of"),
    "bytes left over": (header(lambda h: None, bytes(17)), "bytes, its header speaks of"),
    "an offset past the end": (
        header(lambda h: h["b"].update(data_offsets=[800, 808])),
        "b does not begin where the one before ends",
    ),
    "two in one place": (header(lambda h: h["b"].update(data_offsets=[0, 8])), "b does not begin where"),
    "a negative offset": (header(lambda h: h["a"].update(data_offsets=[-8, 0])), "a has another size"),
    "another size": (header(lambda h: h["a"].update(shape=[3])), "a has another size than its shape"),
    "a negative shape": (header(lambda h: h["b"].update(shape=[-2, -2])), "b has another size"),
    "an unknown dtype": (header(lambda h: h["a"].update(dtype="F4")), "a has a dtype, shape or place"),
    "no shape": (header(lambda h: h["a"].pop("shape")), "a has a dtype, shape or place that is not known"),
    "a word for a tensor": (header(lambda h: h.update(a="x")), "a has a dtype, shape or place"),
    "a folder": (lambda p: p.mkdir(), "cannot be read (Is a directory)"),
    "nothing": (lambda p: None, "no such file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    write, message = BROKEN[case]
    path = tmp_path / "model.safetensors"
    write(path)
    with pytest.raises(QuantmillError) as refused:
        read_header(path)
    assert str(refused.value).startswith(f"{path}: ") and message in str(refused.value)
    assert "\n" not in str(refused.value)


def place(name: str, shard: str) -> Callable[[Path], None]:
    """A tensor that the index places in a shard."""

    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        index["weight_map"][name] = shard
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")

    return change


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing shard": (lambda f: (f / SECOND).unlink(), f"no {SECOND}, named by {INDEX}; fetch the missing"),
    "a tensor that no shard has": (place("lost", FIRST), f"lacks lost, which {INDEX} places there"),
    "a tensor in another shard": (
        place("lm_head.weight", SECOND),
        f"lacks lm_head.weight, which {INDEX} places",
    ),
    "a shard elsewhere": (place("lm_head.weight", "../x.safetensors"), "no ../x.safetensors, named by"),
    "no weight map": (lambda f: (f / INDEX).write_text("{}", encoding="utf-8"), "has no weight_map"),
    "an index of words": (lambda f: (f / INDEX).write_text("x", encoding="utf-8"), "no valid JSON"),
    "no index": (lambda f: (f / INDEX).unlink(), "no model.safetensors, and no index"),
}


@pytest.mark.parametrize("case", WRONG)
def test_shards_that_do_not_fit_their_index_are_refused(tmp_path: Path, case: str) -> None:
    folder = checkpoints.write(tmp_path / "source", shards=2)
    change, message = WRONG[case]
    change(folder)
    with pytest.raises(QuantmillError) as refused:
        Checkpoint(folder)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    data = {
        "byte": ("U8", np.arange(3, dtype=np.uint8)),
        "ü": ("F32", np.array([1.5, -2], np.float32)),
        "half": ("F16", np.zeros((2, 0), np.float16)),
        "one": ("F32", np.array(7, np.float32)),
    }
    path = tmp_path / "x.safetensors"
    with Writer(path, [Tensor(name, dtype, a.shape, path) for name, (dtype, a) in data.items()]) as writer:
        for name, (_, array) in data.items():
            writer.put(name, array)
    assert dict(safetensors.deserialize(path.read_bytes())) == {
        name: {"dtype": dtype, "shape": list(array.shape), "data": bytearray(array.tobytes())}
        for name, (dtype, array) in data.items()
    }
    offsets = {tensor.name: tensor.offset for tensor in read_header(path)}
    assert offsets["ü"] % 4 == 0 and offsets["byte"] == max(offsets.values())


def test_the_writer_notices_what_is_missing_or_too_long(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with (
        pytest.raises(ValueError, match="never written: a"),
        Writer(path, [Tensor("a", "U8", (2,), path)]),
    ):
        pass
    path.unlink()
    with (
        pytest.raises(ValueError, match="a: 3 bytes for a place of 2"),
        Writer(path, [Tensor("a", "U8", (2,), path)]) as writer,
    ):
        writer.put("a", np.zeros(3, np.uint8))


def test_any_number_of_files_is_written_and_read_at_once(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.safetensors" for n in range(200)]
    with limits.few_files(), ExitStack() as stack:
        writers = [stack.enter_context(Writer(file, [Tensor(file.stem, "U8", (4,), file)])) for file in files]
        for n, writer in enumerate(writers):
            writer.put(str(n), np.full(4, n, np.uint8))
    index = {file.stem: file.name for file in files}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    with limits.few_files():
        checkpoint = Checkpoint(tmp_path)
        data = {name: checkpoint.data(tensor) for name, tensor in checkpoint.tensors.items()}
    assert {name: values.tolist() for name, values in data.items()} == {str(n): [n] * 4 for n in range(200)}
