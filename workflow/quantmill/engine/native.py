"""The project's own native code, built into the environment: one library for all processors of a kind.

`make env` builds it; where it is missing (in a conda environment) the first process that needs it does.
"""

from __future__ import annotations

import ctypes as c
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from quantmill.errors import QuantmillError

_SOURCES: Final = tuple(Path(__file__).with_name(name) for name in ("feedback.cpp", "sums.cpp"))
_INCLUDED: Final = (Path(__file__).with_name("entries.h"),)
_NAME: Final = _SOURCES[0].name  # what an error names
FLAGS: Final = ("-O3", "-std=c++17", "-shared", "-fPIC", "-Wno-psabi")
_COMPILERS: Final = ("c++", "g++", "clang++")


@cache
def load() -> c.CDLL:
    """The library; its calls release the GIL."""
    return c.CDLL(str(built()))


def sources_sha256() -> str:
    """sha256 (hex) of the kernel's sources, joined."""
    texts = b"".join(file.read_bytes() for file in (*_SOURCES, *_INCLUDED))
    return hashlib.sha256(texts).hexdigest()


def built() -> Path:
    """The kernel's library, built into the environment if it is missing.

    QuantmillError where the environment cannot be written, or there is no working compiler.
    """
    path = Path(sys.prefix) / "lib" / f"quantmill-{sources_sha256()[:16]}.so"
    if path.exists():
        return path
    compiler = (
        shlex.split(os.environ.get("CXX", "")) or [name for name in _COMPILERS if shutil.which(name)][:1]
    )
    if not compiler:
        raise QuantmillError("no C++ compiler to build it", _NAME, "install one, then run `make env`")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [*compiler, *FLAGS, "-o", str(made), *map(str, _SOURCES)]
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", check=False
            )
            if done.returncode != 0:
                last = done.stderr.strip().split("\n")[-1] or "the compiler says nothing"
                raise QuantmillError(f"cannot be compiled ({last})", _NAME, "use another C++ compiler (CXX)")
            os.replace(made, path)
    except OSError as error:
        what = f"cannot be built into the environment ({error.strerror})"
        raise QuantmillError(what, _NAME, "run `make env` where the environment can be written") from None
    return path


if __name__ == "__main__":
    built()
