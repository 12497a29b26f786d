"""ik_llama.cpp's own tools and library for tests, each in a process of its own.

`python tests/ik.py types` prints what its library says of its types, and
`python tests/ik.py compare SOURCE MADE DAT|-` the tensors of which our
conversion gives other bytes than stand in MADE, a file of its llama-quantize.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantmill.engine import ggml, library
from quantmill.formats import ggufio

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


def _data(path: Path, tensor: ggufio.Tensor) -> np.ndarray:
    return np.memmap(path, np.uint8, "r", tensor.offset, (tensor.bytes,))


if __name__ == "__main__":
    library.use("ik")
    if sys.argv[1] == "types":
        print(json.dumps(_types()))
    else:
        source, made, dat = sys.argv[2:]
        print(json.dumps(_differing(Path(source), Path(made), None if dat == "-" else Path(dat))))
