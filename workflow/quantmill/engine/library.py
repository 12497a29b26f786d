"""Where the native libraries lie, and their digest, without loading them."""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
from collections.abc import Callable
from functools import cache
from pathlib import Path

from quantmill.errors import QuantmillError
from quantmill.spec import digest as digest_of

# What decides a result: the quantizers, the CPU kernels, the graphs. A build
# with another compiler or flags gives other bytes for the k-quants.
_LIBRARIES = ("ggml-base", "ggml-cpu", "llama")

# GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU of ggml-backend.h.
_GPU = (1, 2)


@cache
def folder() -> Path:
    """The folder of llama-cpp-python's shared libraries. QuantmillError where it is not installed."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise QuantmillError("llama-cpp-python is not installed", cure="run `make` to build the environment")
    return Path(found.origin).parent / "lib"


def path(name: str) -> Path:
    """The shared library `name`, such as `ggml-base`, whatever this system's suffix is."""
    for suffix in (".so", ".dylib"):
        candidate = folder() / f"lib{name}{suffix}"
        if candidate.exists():
            return candidate
    raise QuantmillError(f"no lib{name} in it", folder(), "install llama-cpp-python again")


@cache
def load(name: str) -> ctypes.CDLL:
    """The shared library `name`, loaded; its calls release the GIL."""
    return ctypes.CDLL(str(path(name)))


def backend() -> str:
    """What computes: the GPUs' own descriptions where ggml sees any, else `CPU`."""
    ggml = load("ggml")
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype, ggml.ggml_backend_dev_get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    base = load("ggml-base")
    base.ggml_backend_dev_type.argtypes = base.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_description.restype = ctypes.c_char_p
    devices = [ggml.ggml_backend_dev_get(i) for i in range(ggml.ggml_backend_dev_count())]
    gpus = [
        base.ggml_backend_dev_description(d).decode()
        for d in devices
        if base.ggml_backend_dev_type(d) in _GPU
    ]
    return ", ".join(gpus) or "CPU"


def digest(file_sha256: Callable[[Path], str]) -> str:
    """sha256 (hex) over the engine's libraries, through a (memoised) digest of files."""
    return digest_of({name: file_sha256(path(name)) for name in _LIBRARIES})


def release(pointer: ctypes._Pointer[ctypes.c_float], size: int) -> None:
    """Give the pages of `size` bytes of private memory back to the system; they then read as zeros."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        advice = mmap.MADV_DONTNEED
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)
