"""ik_llama.cpp's own tools and library for tests, each in a process of its own.

`python tests/ik.py types` prints what its library says of its types, and
`python tests/ik.py compare SOURCE MADE DAT|-` the tensors of which our
conversion gives other bytes than stand in MADE, a file of its llama-quantize.
`convert` and `round` take arrays from FOLDER/given.npz and leave those that they
make in FOLDER/made.npz: see `converted` and `rounded`; so does `multiply`: see `multiplied`.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from quantmill.engine import ggml, library
from quantmill.formats import ggufio
from quantmill.measure.outer import Second
from quantmill.quantize import kernels
from quantmill.store import Store

NEEDED = pytest.mark.skipif(
    find_spec("ik_llama_cpp") is None, reason="no ik-llama-cpp-python: Linux on x86-64, Python 3.11 to 3.13"
)


def llama_quantize(source: Path, out: Path, preset: str, *options: str | Path) -> str:
    """Its own llama-quantize on two threads; what it said, or an AssertionError with it."""
    tool = library.folder("ik").parent / "bin" / "llama-quantize"
    command = [tool, "--allow-requantize", *options, source, out, preset, "2"]
    quiet = os.environ | {"GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def dry_run(source: Path, preset: str, *options: str | Path) -> dict[str, str]:
    """The types that it decides for a model's tensors, by name."""
    message = llama_quantize(source, Path("unwritten.gguf"), preset, "--dry-run", *options)
    parts = re.split(r"\[ *\d+/ *\d+\] +(\S+) - \[[^]]*\], type = +(\w+), ", message)[1:]
    types = {}
    for name, stored, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        changed = re.search(r"converting to (\w+) \.\.", text)
        types[name] = changed[1] if changed else stored
    return types


def child(*words: str | Path) -> Any:
    """What a child process prints."""
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def converted(
    folder: Path, jobs: Mapping[str, tuple[np.ndarray, str, str]], shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Rows of `shape` (the width first) of one type as another, by the names of the jobs."""
    words = [[name, before, after] for name, (_, before, after) in jobs.items()]
    given = {name: data.reshape(-1).view(np.uint8) for name, (data, _, _) in jobs.items()}
    return _made("convert", folder, {"jobs": words, "shape": shape}, given)


def rounded(
    folder: Path, types: list[str], weights: np.ndarray, inputs: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By type: weights [rows, columns] rounded to nearest, and with the errors fed back by the moments of
    inputs [tokens, columns]; f32, as they are read."""
    made = _made("round", folder, {"types": types}, {"weights": weights, "inputs": inputs})
    return {name: (made[name], made[f"{name} gptq"]) for name in types}


def multiplied(folder: Path, rows: Mapping[str, np.ndarray], columns: int) -> dict[str, np.ndarray]:
    """By type: a row of `columns` weights as its products with vectors of a single one have them, f32."""
    return _made("multiply", folder, {"columns": columns}, rows)


def _made(
    command: str, folder: Path, words: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    np.savez(folder / "given.npz", words=np.array(json.dumps(words)), **arrays)
    child(command, folder)
    return dict(np.load(folder / "made.npz"))


def read_dat(path: Path) -> Mapping[str, np.ndarray]:
    """Importance values as its llama-quantize reads them: each divided by its entry's calls."""
    data, at, found = path.read_bytes(), 4, {}
    for _ in range(struct.unpack_from("<i", data)[0]):
        length = struct.unpack_from("<i", data, at)[0]
        name = data[at + 4 : at + 4 + length].decode()
        calls, count = struct.unpack_from("<ii", data, at + 4 + length)
        found[name] = np.frombuffer(data, "<f4", count, at + 12 + length) / np.float32(calls)
        at += 12 + length + 4 * count
    return found


def _types() -> dict[str, list[int]]:
    lib = library.load("ggml")
    lib.ggml_blck_size.restype = ctypes.c_int64
    lib.ggml_type_size.restype = ctypes.c_size_t
    found = {}
    for name, number in ggml.type_ids().items():
        block, size = lib.ggml_blck_size(number), lib.ggml_type_size(number)
        found[name] = [number, block, size, ggml.row_bytes(name, 256 * block) - 256 * size]
    return found


def _differing(source: Path, made: Path, dat: Path | None) -> dict[str, bool]:
    before, after = ggufio.read_header(source), ggufio.read_header(made, data=False)
    importance = {} if dat is None else read_dat(dat)
    originals, found = {tensor.name: tensor for tensor in before.tensors}, {}
    with ThreadPoolExecutor(2) as pool:
        for tensor in after.tensors:
            original, weights = originals[tensor.name], importance.get(tensor.name)
            if tensor.type == original.type:
                continue
            ours = ggml.Conversion(
                pool,
                2,
                _data(source, original),
                original.type,
                tensor.type,
                tensor.shape,
                None if weights is None else weights.reshape(-1, tensor.shape[0]),
            ).result()
            found[f"{tensor.name} {tensor.type}"] = not np.array_equal(ours, _data(made, tensor))
    return found


def _converted(words: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    importance = np.ones((1, words["shape"][0]), np.float32)
    with ThreadPoolExecutor(1) as pool:
        return {
            name: ggml.Conversion(
                pool, 1, given[name], before, after, tuple(words["shape"]), importance
            ).result()
            for name, before, after in words["jobs"]
        }


class _Products(ctypes.Structure):
    """`ggml_type_traits_t` of its ggml.h, from `from_float` on."""

    _fields_ = (
        ("head", ctypes.c_char * 48),
        *((name, ctypes.c_void_p) for name in ("from_float", "from_float_ref", "from_float_to_mat", "dot")),
        ("dot_type", ctypes.c_int),
        ("rest", ctypes.c_char * 44),
    )


def _multiplied(words: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    columns, made, traits_of = words["columns"], {}, library.load("ggml").ggml_internal_get_type_traits
    traits_of.restype, traits_of.argtypes = _Products, [ctypes.c_int]
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for name, row in given.items():
        traits = traits_of(ggml.type_ids()[name])
        quantize = ctypes.CFUNCTYPE(None, pointer, pointer, ctypes.c_int64)(
            traits_of(traits.dot_type).from_float
        )
        dot = ctypes.CFUNCTYPE(None, number, pointer, size, pointer, size, pointer, size, number)(traits.dot)
        made[name], vector = np.zeros(columns, np.float32), np.zeros(8 * columns, np.uint8)
        for place, one in enumerate(np.eye(columns, dtype=np.float32)):
            quantize(one.ctypes.data, vector.ctypes.data, columns)
            out = made[name][place:]
            dot(columns, out.ctypes.data, 0, row.ctypes.data, 0, vector.ctypes.data, 0, 1)
    return made


class _Given:
    """Moments as `measure.moments.Moments` gives them, of one input."""

    def __init__(self, inputs: np.ndarray) -> None:
        self._second = Second((inputs.T @ inputs)[None, None], np.array([len(inputs)]))

    def key(self, weight: str) -> str:
        return "k"

    def of(self, weight: str) -> Second:
        return self._second


def _rounded(words: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    weights, made = given["weights"], {}
    shape, source = (weights.shape[1], weights.shape[0], 1), weights.reshape(-1).view(np.uint8)
    importance = np.ones((1, shape[0]), np.float32)
    moments: Any = _Given(given["inputs"])
    with (
        TemporaryDirectory() as store,
        ThreadPoolExecutor(1) as pool,
        kernels.Quantizer("e", Store(Path(store)), 2, moments) as quantizer,
    ):
        for name in words["types"]:
            plain = kernels.task("blk.0.ffn_up.weight", "sha", "f32", name, shape, importance, "ik")
            for title, task in ((name, plain), (f"{name} gptq", replace(plain, moments="k"))):
                data = np.frombuffer(quantizer.start(task, source)(), np.uint8)
                values = ggml.Conversion(pool, 1, data, name, "f32", shape, None).result()
                made[title] = values.view(np.float32).reshape(weights.shape)
    return made


def _data(path: Path, tensor: ggufio.Tensor) -> np.ndarray:
    return np.memmap(path, np.uint8, "r", tensor.offset, (tensor.bytes,))


if __name__ == "__main__":
    library.use("ik")
    if sys.argv[1] == "types":
        print(json.dumps(_types()))
    elif sys.argv[1] in ("convert", "round", "multiply"):
        work = {"convert": _converted, "round": _rounded, "multiply": _multiplied}[sys.argv[1]]
        folder = Path(sys.argv[2])
        with np.load(folder / "given.npz") as arrays:
            given = dict(arrays)
        words = json.loads(str(given.pop("words")))
        np.savez(folder / "made.npz", **work(words, given))
        print("{}")
    else:
        source, made, dat = sys.argv[2:]
        print(json.dumps(_differing(Path(source), Path(made), None if dat == "-" else Path(dat))))
