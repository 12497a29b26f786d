"""Where the native libraries of the two engines lie, and their digests, without loading them.

`mainline` is llama.cpp, `ik` is ik_llama.cpp. Their structs have the same names
and other layouts, so that a process has one engine: mainline unless its stage
says otherwise by `use`, before anything is loaded.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from quantmill.errors import QuantmillError
from quantmill.spec import digest as digest_of


class Engine(NamedTuple):
    """A package with an engine: its module, and of its libraries those that decide a result.

    These are the quantizers, the CPU kernels, the graphs. A build with another
    compiler or flags gives other bytes for the k-quants. `needs` are the
    instruction sets that a ready-made library was built for.
    """

    package: str
    module: str
    libraries: tuple[str, ...]
    needs: frozenset[str] = frozenset()


ENGINES: Final = {
    "mainline": Engine("llama-cpp-python", "llama_cpp", ("ggml-base", "ggml-cpu", "llama")),
    "ik": Engine(
        "ik-llama-cpp-python", "ik_llama_cpp", ("ggml", "llama"), frozenset(("avx2", "fma", "f16c"))
    ),
}

# GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU of ggml-backend.h.
_GPU = (1, 2)

_CPUINFO = Path("/proc/cpuinfo")

_in_use: list[str] = []


def use(engine: str) -> None:
    """Decide which engine this process has. QuantmillError where it cannot be had here."""
    if _in_use and _in_use[0] != engine:
        raise RuntimeError(f"this process has the engine {_in_use[0]}, and cannot have {engine} too")
    folder(engine)
    _in_use[:] = [engine]


def in_use() -> str:
    """The engine of this process."""
    if not _in_use:
        use("mainline")
    return _in_use[0]


@cache
def folder(engine: str) -> Path:
    """The folder of an engine's shared libraries.

    QuantmillError where it is not installed, or this processor lacks what it was built for.
    """
    package, module, _, needs = ENGINES[engine]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        cure = (
            "run `make` to build the environment" if engine == "mainline"
            else "it exists for Linux on x86-64 and Python 3.11 to 3.13 (`make -B env PYTHON=python3.13`); "
            "or use recipes of engine mainline"
        )  # fmt: skip
        raise QuantmillError(f"{package} is not installed", f"engine {engine}", cure)
    missing = sorted(needs - instruction_sets()) if needs else []
    if missing:
        raise QuantmillError(
            f"{package} needs a processor with {', '.join(missing)}, which this one has not",
            f"engine {engine}", "use another machine, or recipes of engine mainline",
        )  # fmt: skip
    return Path(found.origin).parent / "lib"


def marked() -> dict[str, str]:
    """What a report says of the engine that made it: nothing of mainline, as reports always did."""
    return {} if in_use() == "mainline" else {"engine": in_use()}


def instruction_sets() -> frozenset[str]:
    """The flags of this processor, as Linux lists them."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())


def path(name: str, engine: str) -> Path:
    """An engine's shared library `name`, such as `ggml-base`, whatever this system's suffix is."""
    for suffix in (".so", ".dylib"):
        candidate = folder(engine) / f"lib{name}{suffix}"
        if candidate.exists():
            return candidate
    package = ENGINES[engine].package
    raise QuantmillError(f"no lib{name} in it", folder(engine), f"install {package} again")


@cache
def load(name: str) -> ctypes.CDLL:
    """The shared library `name` of this process's engine, loaded; its calls release the GIL."""
    return ctypes.CDLL(str(path(name, in_use())))


def backend() -> str:
    """What computes: the GPUs' own descriptions where ggml sees any, else `CPU`."""
    if in_use() == "ik":
        return "CPU"  # its package is built for no other
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


def digest(file_sha256: Callable[[Path], str], engine: str = "mainline") -> str:
    """sha256 (hex) over an engine's libraries, through a (memoised) digest of files."""
    return digest_of({name: file_sha256(path(name, engine)) for name in ENGINES[engine].libraries})


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
