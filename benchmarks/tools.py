"""llama.cpp's own tools, built from the very sources that the engine was built from."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from quantmill.engine import library
from quantmill.engine.library import Build

HERE = Path(__file__).parent
NAMES = ("llama-quantize", "llama-imatrix", "llama-perplexity", "llama-bench")
# As the sdist's own build has them (OpenMP), less what the tools do not need. The instruction sets are those
# that the installed engine was built for.
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_CURL": "OFF",
}


def find_or_build(folder: Path) -> Path:
    """The folder of the four tools, built under `folder` where they are not there yet."""
    binaries = folder / "tools" / "bin"
    if not all((binaries / name).exists() for name in NAMES):
        print("building llama.cpp's tools from the pinned sdist, some minutes", file=sys.stderr, flush=True)
        _build(_sources(folder), folder / "tools")
    return binaries


def _sources(folder: Path) -> Path:
    """The unpacked sdist that envs/engine.lock names by its hash."""
    lock = HERE.parent / "envs" / "engine.lock"
    with tempfile.TemporaryDirectory() as download:
        _run(
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--no-binary",
            "llama-cpp-python",
            "--require-hashes",
            "--dest",
            download,
            "--requirement",
            lock,
        )
        (archive,) = Path(download).glob("*.tar.gz")
        shutil.rmtree(folder / "sdist", ignore_errors=True)
        with tarfile.open(archive) as sdist:
            sdist.extractall(folder / "sdist", filter="data")
    (sources,) = (folder / "sdist").glob("*/vendor/llama.cpp")
    return sources


def _build(sources: Path, folder: Path) -> None:
    cmake = _program("cmake")
    engine = Build.read(library.installed("mainline") / library.BUILD)
    options = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    options += [*engine.cmake.split(), f"-DCMAKE_C_FLAGS={engine.flags}", f"-DCMAKE_CXX_FLAGS={engine.flags}"]
    _run(
        cmake,
        "-S",
        sources,
        "-B",
        folder,
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={_program('ninja')}",
        *options,
    )
    _run(cmake, "--build", folder, "--target", *NAMES)


def _program(name: str) -> Path:
    """A program of this environment (envs/build.lock), else of the system."""
    beside = Path(sys.executable).parent / name
    found = beside if beside.exists() else shutil.which(name)
    if not found:
        sys.exit(f"error: no {name}; run `make env` first")
    return Path(found)


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        sys.exit(f"{tail}\nerror: {' '.join(map(str, command[:3]))} failed with exit code {done.returncode}")
