"""Where the native libraries of the two engines lie, and their digests, without loading them.

`mainline` is llama.cpp, `ik` is ik_llama.cpp. Their structs have the same names
and other layouts, so that a process has one engine: mainline unless its stage
says otherwise by `use`, before anything is loaded.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import mmap
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from quantmill.errors import QuantmillError
from quantmill.files import write_json
from quantmill.formats.devices import Placed
from quantmill.spec import digest as digest_of


class Engine(NamedTuple):
    """A package with an engine: its module, and of its libraries those that decide a result.

    These are the quantizers, the CPU kernels, the graphs. A build with another
    compiler or flags gives other bytes for the k-quants. `declarations` is the
    submodule with its functions and structs. `needs` are the instruction sets
    that a ready-made library was built for.
    """

    package: str
    module: str
    declarations: str
    libraries: tuple[str, ...]
    needs: frozenset[str] = frozenset()


ENGINES: Final = {
    "mainline": Engine("llama-cpp-python", "llama_cpp", "llama_cpp", ("ggml-base", "ggml-cpu", "llama")),
    "ik": Engine(
        "ik-llama-cpp-python",
        "ik_llama_cpp",
        "_ctypes_api",
        ("ggml", "llama"),
        frozenset(("avx2", "fma", "f16c")),
    ),
}


class Build(NamedTuple):
    """What `make env` knows of an installed engine.

    `needs`: the instruction sets that it was compiled for, as /proc/cpuinfo names
    them. `fault`: what its self-test found, None where it passed. `cmake` and
    `flags`: the options that `make env` gave CMake and the compilers.
    """

    needs: frozenset[str] = frozenset()
    fault: str | None = None
    compiler: str = ""
    cmake: str = ""
    flags: str = ""

    def write(self, path: Path) -> None:
        """Keep it, as JSON."""
        write_json(path, self._asdict() | {"needs": sorted(self.needs)})

    @classmethod
    def read(cls, path: Path) -> Build:
        """What was noted; nothing is known where there is no such file."""
        try:
            build = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        return cls(**build | {"needs": frozenset(build["needs"])})


_CPUINFO = Path("/proc/cpuinfo")

BUILD: Final = "quantmill.json"  # beside an engine's libraries: its `Build`

_in_use: list[str] = []


def use(engine: str) -> None:
    """Decide which engine this process has. QuantmillError where it cannot be had here."""
    if _in_use and _in_use[0] != engine:
        raise RuntimeError(f"this process has the engine {_in_use[0]}, and cannot have {engine} too")
    check(engine)
    _in_use[:] = [engine]
    if engine == "ik":  # where it aborts it starts a debugger, found by PATH, whatever GGML_NO_BACKTRACE says
        os.environ["PATH"] = os.devnull


def in_use() -> str:
    """The engine of this process."""
    if not _in_use:
        use("mainline")
    return _in_use[0]


def bindings(engine: str) -> Any:
    """The module with an engine's functions and structs. It loads the library, so `use` comes first."""
    use(engine)
    return importlib.import_module(f"{ENGINES[engine].module}.{ENGINES[engine].declarations}")


@cache
def folder(engine: str) -> Path:
    """The folder of an engine's shared libraries.

    QuantmillError where it is not installed, or its self-test failed.
    """
    libraries = installed(engine)
    fault = Build.read(libraries / BUILD).fault
    if fault is not None:
        cure = "run `make env` again" if engine == "mainline" else "use recipes of engine mainline"
        what = f"{ENGINES[engine].package} {fault} (the self-test of `make env`)"
        raise QuantmillError(what, f"engine {engine}", cure)
    return libraries


def installed(engine: str) -> Path:
    """The folder of an engine's shared libraries, working or not; QuantmillError where there is none."""
    module = importlib.util.find_spec(ENGINES[engine].module)
    package = ENGINES[engine].package
    if module is None or module.origin is None:
        cure = (
            "run `make` to build the environment"
            if engine == "mainline"
            else "it exists for Linux on x86-64 and Python 3.11 to 3.13 (`make -B env PYTHON=python3.13`); "
            "or use recipes of engine mainline"
        )
        raise QuantmillError(f"{package} is not installed", f"engine {engine}", cure)
    return Path(module.origin).parent / "lib"


@cache
def check(engine: str) -> None:
    """QuantmillError where this processor lacks what an engine was built for: it would die by a signal."""
    package, needs = ENGINES[engine].package, ENGINES[engine].needs
    needs |= Build.read(folder(engine) / BUILD).needs
    if missing := lacking(needs):
        cure = (
            "build it here (`make -B env`), or once for all machines (`make env PORTABLE=1`)"
            if engine == "mainline"
            else "use another machine, or recipes of engine mainline"
        )
        raise QuantmillError(
            f"{package} needs a processor with {missing}, which this one has not", f"engine {engine}", cure
        )


def lacking(needs: frozenset[str]) -> str:
    """Which of the instruction sets this processor lacks, in words; none where it does not tell."""
    there = instruction_sets()
    missing = sorted(needs - there) if there else []
    more = len(missing) - 3
    return ", ".join(missing[:3]) + (f" and {more} more" if more > 0 else "")


class Mark(Placed, total=False):
    """What a report has of its engine."""

    engine: str


def marked() -> Mark:
    """What a report says of the engine that made it: nothing of mainline, as reports always did."""
    return {} if in_use() == "mainline" else {"engine": in_use()}


def instruction_sets() -> frozenset[str]:
    """The flags of this processor, as Linux lists them (on arm64 `Features`); elsewhere none."""
    try:
        with _CPUINFO.open(encoding="utf-8") as lines:  # of the first core alone: there may be hundreds
            flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return frozenset()
    return frozenset(flags.partition(":")[2].split())


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
