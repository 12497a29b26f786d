"""Install the engine (llama-cpp-python, an sdist) into the environment that runs this, and prove it.

    python envs/engine.py native|portable

The wheel is built once for a machine and kept in the user's cache, under the
digest of all that decides it: pip's own cache knows a wheel by its source alone
and would hand a build for the CPU to whoever asks for CUDA next. What the user
puts into CMAKE_ARGS and CFLAGS reaches the build as it is, and wins.

Compilers err: g++ 12 leaves out what AMX needs, and the library dies by SIGILL.
So a small evaluation in a child process (quantmill.selftest) comes before the
environment is ready. Where it fails the engine is built again without the newest
instruction sets; a build that failed is remembered and not made twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final, NoReturn

from quantmill.engine import library
from quantmill.engine.library import Build

_HERE = Path(__file__).parent
_LOCKS = ("engine.lock", "build.lock")
_ENVIRONMENT = ("CMAKE_ARGS", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS")
_NAMES: Final = {"mainline": "llama.cpp", "ik": "ik_llama.cpp"}

# The instruction sets that compilers use by themselves or ggml by intrinsics: the macro
# which says that code may have them, and their name in /proc/cpuinfo.
_MACROS: Final = {
    "__SSE3__": "pni",
    "__SSSE3__": "ssse3",
    "__SSE4_1__": "sse4_1",
    "__SSE4_2__": "sse4_2",
    "__POPCNT__": "popcnt",
    "__LZCNT__": "abm",
    "__MOVBE__": "movbe",
    "__BMI__": "bmi1",
    "__BMI2__": "bmi2",
    "__AVX__": "avx",
    "__AVX2__": "avx2",
    "__FMA__": "fma",
    "__F16C__": "f16c",
    "__FMA4__": "fma4",
    "__XOP__": "xop",
    "__TBM__": "tbm",
    "__GFNI__": "gfni",
    "__AVXVNNI__": "avx_vnni",
    "__AVX512F__": "avx512f",
    "__AVX512CD__": "avx512cd",
    "__AVX512BW__": "avx512bw",
    "__AVX512DQ__": "avx512dq",
    "__AVX512VL__": "avx512vl",
    "__AVX512IFMA__": "avx512ifma",
    "__AVX512VBMI__": "avx512vbmi",
    "__AVX512VBMI2__": "avx512_vbmi2",
    "__AVX512VNNI__": "avx512_vnni",
    "__AVX512BITALG__": "avx512_bitalg",
    "__AVX512VPOPCNTDQ__": "avx512_vpopcntdq",
    "__AVX512BF16__": "avx512_bf16",
    "__AVX512FP16__": "avx512_fp16",
    "__AMX_TILE__": "amx_tile",
    "__AMX_INT8__": "amx_int8",
    "__AMX_BF16__": "amx_bf16",
    "__AMX_FP16__": "amx_fp16",
    "__AMX_COMPLEX__": "amx_complex",
    "__ARM_FEATURE_ATOMICS": "atomics",
    "__ARM_FEATURE_DOTPROD": "asimddp",
    "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "asimdhp",
    "__ARM_FEATURE_MATMUL_INT8": "i8mm",
    "__ARM_FEATURE_BF16": "bf16",
    "__ARM_FEATURE_SVE": "sve",
    "__ARM_FEATURE_SVE2": "sve2",
    "__ARM_FEATURE_SME": "sme",
}

# The newest first: what it is called, and how the flags that belong to it begin.
_NEWEST: Final = {"AMX": "amx_", "AVX-512": "avx512"}

# Devices of other machines (`devices: {rpc: ...}`); the libraries that decide a result are the same with it.
_RPC: Final = "-DGGML_RPC=ON"

# x86-64-v3, and what arm64 servers and Macs have since 2019.
_PORTABLE: Final = {
    "x86_64": " ".join(f"-DGGML_{name}=ON" for name in ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")),
    "aarch64": "-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16",
    "arm64": "-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16",
}

# Signals that tell of the machine and not of the library.
_KILLED: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# The self-test's exit codes where the library computes wrong values, and where it cannot be loaded.
_WRONG, _NOT_LOADED = 3, 4


class UndecidedError(Exception):
    """The self-test did not come to an end, for a reason that is not the engine's."""


@dataclass(frozen=True)
class Way:
    """A way to build: options for CMake and the compilers, before the user's own."""

    portable: bool = False
    cmake: str = f"-DGGML_NATIVE=ON {_RPC}"
    flags: str = ""
    without: tuple[str, ...] = ()

    def leaving_out(self, newest: str, needs: frozenset[str]) -> Way:
        """The same without an instruction set. CMake's options do not reach what -march=native turns on."""
        named = sorted(flag for flag in needs if flag.startswith(_NEWEST[newest]))
        # -mno-avx512f turns off all that stands on it; AMX's sets stand side by side.
        off = ["avx512f"] if newest == "AVX-512" else named
        flags = " ".join([*self.flags.split(), *(f"-mno-{flag.replace('_', '-')}" for flag in off)])
        return replace(self, flags=flags, without=(*self.without, newest))


def main(kind: str) -> None:
    """Find or build a wheel that passes the self-test; then test ik's, which came ready-made."""
    prove(portable() if kind == "portable" else Way(), attempt)
    test_ik()


def portable() -> Way:
    """The build for all machines of a kind."""
    options = _PORTABLE.get(platform.machine())
    if options is None:
        _refuse(f"no portable build is known for {platform.machine()}; run `make env`")
    return Way(portable=True, cmake=f"-DGGML_NATIVE=OFF {options} {_RPC}")


def prove(way: Way, attempt: Callable[[Way], Build]) -> None:
    """Attempt a way to build, then without what is newest in it, until one has no fault."""
    while True:
        build = attempt(way)
        if build.fault is None:
            return
        newest = None if way.portable else _next(way, build.needs)
        if newest is None:
            tried = f", also without {' and '.join(way.without)}" if way.without else ""
            built = f"llama.cpp, built by {build.compiler or 'this compiler'}"
            _refuse(f"{built}, {build.fault}{tried}; {_cure(way, build)}")
        print(
            f"llama.cpp with {newest}, built by {build.compiler}, {build.fault}; going on without {newest}",
            flush=True,
        )
        way = way.leaving_out(newest, build.needs)


def _cure(way: Way, build: Build) -> str:
    if library.lacking(build.needs):
        return "run `make env PORTABLE=0`" if way.portable else "CMAKE_ARGS or CFLAGS ask for it"
    return "try another compiler (CC=... CXX=... make env)" + ("" if way.portable else " or PORTABLE=1")


def _next(way: Way, needs: frozenset[str]) -> str | None:
    """What to leave out next: of what the build has the newest, unless the user asked for it by name."""
    asked = " ".join(os.environ.get(name, "") for name in ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS")).lower()
    return next(
        (
            name
            for name, prefix in _NEWEST.items()
            if name not in way.without
            and prefix.rstrip("_") not in asked
            and any(flag.startswith(prefix) for flag in needs)
        ),
        None,
    )


def attempt(way: Way) -> Build:
    """Install the wheel of a way to build, built where it is not kept, and test it; what is known of it."""
    kept = _cache() / "wheels" / _key(way)
    wheel = next(kept.glob("*.whl"), None)
    build = Build.read(kept / library.BUILD)
    if build.fault is not None:  # found when it was built
        return build
    if wheel is None:
        wheel, build = _build(way, kept)
    _pip("install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    importlib.invalidate_caches()
    record = library.installed("mainline") / library.BUILD
    build.write(record)
    missing = library.lacking(build.needs)
    fault = f"was built for {missing}, which this processor has not" if missing else test("mainline")
    if fault is None:
        return build
    build = build._replace(fault=fault)
    build.write(record)
    if not way.portable:  # that fault may be this machine's alone
        build.write(kept / library.BUILD)
        wheel.unlink()
    return build


def test(engine: str) -> str | None:
    """Evaluate small models in a child process: None, or what is wrong with the engine.

    UndecidedError where it was killed, or ended for a reason that is not the engine's.
    """
    command = [sys.executable, "-m", "quantmill.selftest.run", "--engine", engine]
    path = _log(engine)
    with path.open("w", encoding="utf-8") as log:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="replace",
            check=False,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )
    last = (done.stdout.splitlines() or ["as it is loaded"])[-1]
    if done.returncode == 0:
        return None
    if done.returncode == _WRONG:
        return f"computes wrong values here: {last}"
    if done.returncode == _NOT_LOADED and os.environ.get("CMAKE_ARGS"):
        # A build for a GPU, say, on a machine without its driver.
        print(f"{_NAMES[engine]} is not tested, since it cannot be loaded here: {last}", flush=True)
        return None
    if done.returncode > 0 or -done.returncode in _KILLED:
        words = path.read_text(encoding="utf-8", errors="replace").splitlines() or [last]
        said = "it was killed" if done.returncode < 0 else words[-1]
        raise UndecidedError(f"the self-test of {_NAMES[engine]} could not be run: {said}; see {path}")
    return f"dies here with {signal.Signals(-done.returncode).name} ({last})"


def test_ik() -> None:
    """Test ik_llama.cpp where it is installed; where it fails, its recipes are refused from here on."""
    if importlib.util.find_spec(library.ENGINES["ik"].module) is None:
        return
    record = library.installed("ik") / library.BUILD
    record.unlink(missing_ok=True)
    fault: str | None
    missing = library.lacking(library.ENGINES["ik"].needs)
    if missing:  # which each machine sees for itself
        fault = f"needs {missing}, which this processor has not"
    else:
        try:
            fault = test("ik")
        except UndecidedError as error:
            fault = f"could not be tested ({error})"
        if fault is not None:
            Build(fault=fault).write(record)
    if fault is not None:
        print(f"ik_llama.cpp {fault}; recipes of engine ik will be refused", flush=True)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "quantmill"


def _log(engine: str) -> Path:
    return Path(sys.prefix) / f"selftest-{engine}.log"


def _refuse(line: str) -> NoReturn:
    sys.exit(f"error: {line}")


def _key(way: Way) -> str:
    """The digest of the locks, the compilers, the build's environment and, of a native one, the processor."""
    decides = [
        [(_HERE / lock).read_text("utf-8") for lock in _LOCKS],
        [sys.platform, platform.machine(), platform.libc_ver(), "" if way.portable else _processor()],
        [_version("CC", "cc", "gcc", "clang"), _version("CXX", "c++", "g++", "clang++")],
        {name: os.environ.get(name, "") for name in _ENVIRONMENT},
        [way.cmake, way.flags],
    ]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]


def _processor() -> str:
    """The instruction sets of this processor: llama.cpp is built for exactly these."""
    return " ".join(sorted(library.instruction_sets())) or platform.processor()


def _version(variable: str, *usual: str) -> str:
    """What the compiler says of itself: another one may not have this one's faults."""
    named = shlex.split(os.environ.get(variable, ""))
    found = named or [name for name in usual if shutil.which(name)][:1]
    try:
        done = subprocess.run(
            [*found, "--version"], capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except OSError:
        return ""
    return (done.stdout.splitlines() or [""])[0]


def _build(way: Way, kept: Path) -> tuple[Path, Build]:
    """Build the wheel, and keep it with what the compiler was told."""
    log = Path(sys.prefix) / "engine.log"
    for_whom = "every machine of its kind" if way.portable else "this machine"
    print(f"building llama.cpp for {for_whom}, some minutes; log: {log}", flush=True)
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept) as wheels, tempfile.TemporaryDirectory() as folder:
        command = ["wheel", "--verbose", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
        command += ["--no-binary", "llama-cpp-python", "--require-hashes", "--wheel-dir", wheels]
        with log.open("w", encoding="utf-8") as output:
            environment = _environment(way) | {
                "SKBUILD_BUILD_DIR": folder,
                "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
            }
            requirement = str(_HERE / "engine.lock")
            built = _pip(*command, "--requirement", requirement, output=output, environment=environment)
        if built != 0:
            tail = "".join(log.read_text(errors="replace", encoding="utf-8").splitlines(keepends=True)[-20:])
            sys.exit(f"{tail}error: the engine's build failed; see {log}")
        build = compiled(Path(folder))._replace(cmake=way.cmake, flags=way.flags)
        build.write(kept / library.BUILD)
        wheel = next(Path(wheels).glob("*.whl"))
        return wheel.replace(kept / wheel.name), build


def _environment(way: Way) -> dict[str, str]:
    """A way's options before the user's own, who so have the last word."""
    ours = {"CMAKE_ARGS": way.cmake, "CFLAGS": way.flags, "CXXFLAGS": way.flags}
    return {name: f"{option} {os.environ.get(name, '')}".strip() for name, option in ours.items()}


def compiled(folder: Path) -> Build:
    """What the CPU kernels under a build folder were compiled with: the compiler's own word for it."""
    try:
        commands = json.loads((folder / "compile_commands.json").read_text(encoding="utf-8"))
        command = next(
            shlex.split(entry["command"]) for entry in commands if entry["file"].endswith("/ggml-cpu.c")
        )
    except (FileNotFoundError, StopIteration):
        return Build()  # the generator does not tell
    first = next(i for i, word in enumerate(command) if word.startswith("-"))
    options = [word for word in command[first:] if word.startswith("-m")]
    asked = [*command[:first], *options, "-dM", "-E", "-x", "c", os.devnull]
    done = subprocess.run(asked, capture_output=True, encoding="utf-8", errors="replace", check=False)
    macros = dict(
        line.removeprefix("#define ").partition(" ")[::2]
        for line in done.stdout.splitlines()
        if line.startswith("#define ")
    )
    version = macros.get("__VERSION__", "").strip('"').split(" (")[0]
    name = Path(command[first - 1]).name
    return Build(
        needs=frozenset(flag for macro, flag in _MACROS.items() if macro in macros),
        compiler=version if "__clang__" in macros else f"{name} {version}".strip(),
    )


def _pip(*arguments: str, output: IO[str] | None = None, environment: dict[str, str] | None = None) -> int:
    """Run pip with the build tools of this environment first on the path; its exit code."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    if output is None:
        return subprocess.run([*command, "--quiet", "--quiet"], check=True).returncode
    whole = os.environ | {"PATH": path} | (environment or {})
    return subprocess.run(command, env=whole, stdout=output, stderr=subprocess.STDOUT).returncode


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "native")
    except UndecidedError as error:
        _refuse(str(error))
