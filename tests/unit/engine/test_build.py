"""envs/engine.py: which builds are tried, what is kept of them, and what is said."""

import importlib.util
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantmill.engine import library
from quantmill.engine.library import Build
from quantmill.errors import QuantmillError

ROOT = Path(__file__).parents[3]
XEON = frozenset(("avx2", "avx512f", "avx512bw", "amx_tile", "amx_int8", "amx_bf16"))
SIGILL = "dies here with SIGILL (q8_0 weights, dense, batch of 512)"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script as a module, its cache and its environment in a temporary folder."""
    result = importlib.util.spec_from_file_location("engine_script", ROOT / "envs" / "engine.py")
    assert result is not None
    assert result.loader is not None
    module = importlib.util.module_from_spec(result)
    monkeypatch.setitem(sys.modules, "engine_script", module)
    result.loader.exec_module(module)
    for name in module._ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(library, "instruction_sets", lambda: XEON)
    return module


def attempts(engine: Any, *faults: str | None, needs: frozenset[str] = XEON) -> list[Any]:
    """The ways that are tried where the first have these faults; a build has not what its way leaves out."""
    ways: list[Any] = []

    def attempt(way: Any) -> Build:
        ways.append(way)
        left = {flag for name in way.without for flag in needs if flag.startswith(engine._NEWEST[name])}
        return Build(needs - left, faults[len(ways) - 1], "gcc 12.2.0")

    engine.prove(engine.Way(), attempt)
    return ways


def test_a_build_that_works_is_the_only_one(engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (way,) = attempts(engine, None)
    assert (way.cmake, way.flags, capsys.readouterr().out) == (
        "-DGGML_NATIVE=ON -DGGML_RPC=ON",
        "",
        "",
    )


def test_what_dies_is_built_without_amx(engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, way = attempts(engine, SIGILL, None)
    assert way.flags.split() == ["-mno-amx-bf16", "-mno-amx-int8", "-mno-amx-tile"]
    assert capsys.readouterr().out == (
        "llama.cpp with AMX, built by gcc 12.2.0, dies here with SIGILL "
        "(q8_0 weights, dense, batch of 512); going on without AMX\n"
    )


def test_then_without_avx_512(engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    *_, way = attempts(engine, SIGILL, SIGILL, None)
    assert way.flags.endswith("-mno-amx-tile -mno-avx512f")
    assert capsys.readouterr().out.splitlines()[1].endswith("; going on without AVX-512")


def test_a_processor_without_amx_goes_to_avx_512_at_once(engine: Any) -> None:
    assert [way.flags for way in attempts(engine, SIGILL, None, needs=frozenset(("avx2", "avx512f")))] == [
        "",
        "-mno-avx512f",
    ]


def test_nothing_helps(engine: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        attempts(engine, SIGILL, SIGILL, SIGILL)
    assert stop.value.code == (
        "error: llama.cpp, built by gcc 12.2.0, dies here with SIGILL (q8_0 weights, dense, batch of 512), "
        "also without AMX and AVX-512; try another compiler (CC=... CXX=... make env) or PORTABLE=1"
    )


def test_a_portable_build_has_nothing_to_leave_out(engine: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        engine.prove(engine.portable(), lambda way: Build(frozenset(("avx2",)), SIGILL, "gcc 12.2.0"))
    assert "also without" not in str(stop.value.code)
    assert "PORTABLE" not in str(stop.value.code)


def test_what_the_user_asks_for_by_name_stays(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=OFF -DGGML_AMX_INT8=ON")
    _, way = attempts(engine, SIGILL, None)
    assert way.without == ("AVX-512",)


def test_the_users_options_come_last_and_so_win(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=OFF -DGGML_CUDA=ON")
    monkeypatch.setenv("CFLAGS", "-march=haswell")
    without = engine.Way().leaving_out("AVX-512", XEON)
    assert engine._environment(without) == {
        "CMAKE_ARGS": "-DGGML_NATIVE=ON -DGGML_RPC=ON -DGGML_NATIVE=OFF -DGGML_CUDA=ON",
        "CFLAGS": "-mno-avx512f -march=haswell",
        "CXXFLAGS": "-mno-avx512f",
    }


class Machine:
    """Stands in for pip, the compiler and the self-test, and counts what is asked of them."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, needs: frozenset[str]):
        self.built: list[tuple[str, ...]] = []
        self.tested = 0
        self.fault: Callable[[Any], str | None] = lambda way: None
        self.installed = tmp_path / "lib"
        self.installed.mkdir()

        def build(way: Any, folder: Path) -> tuple[Path, Build]:
            self.built.append(way.without)
            self.way = way
            folder.mkdir(parents=True)
            left = {flag for name in way.without for flag in needs if flag.startswith(engine._NEWEST[name])}
            known = Build(needs - left, None, "gcc 12.2.0")
            known.write(folder / library.BUILD)
            (folder / "x.whl").write_bytes(b"")
            return folder / "x.whl", known

        def install(*arguments: str) -> int:
            self.way = Path(arguments[-1]).parent
            return 0

        def test(name: str) -> str | None:
            self.tested += 1
            return self.fault(Build.read(self.installed / library.BUILD))

        monkeypatch.setattr(library, "installed", lambda name: self.installed)
        monkeypatch.setattr(engine, "_build", build)
        monkeypatch.setattr(engine, "_pip", install)
        monkeypatch.setattr(engine, "test", test)


def test_a_build_that_fails_is_not_made_twice(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(engine, monkeypatch, tmp_path, XEON)
    machine.fault = lambda build: SIGILL if "amx_tile" in build.needs else None
    engine.prove(engine.Way(), engine.attempt)
    assert (machine.built, machine.tested) == ([(), ("AMX",)], 2)
    message = capsys.readouterr().out
    engine.prove(engine.Way(), engine.attempt)
    assert (machine.built, machine.tested) == ([(), ("AMX",)], 3), "only the build that passed is tested"
    assert capsys.readouterr().out == message
    installed = Build.read(machine.installed / library.BUILD)
    assert (installed.needs, installed.fault) == (XEON - {"amx_tile", "amx_int8", "amx_bf16"}, None)


def test_an_engine_that_fails_is_refused_though_it_is_installed(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(engine, monkeypatch, tmp_path, frozenset(("avx2",)))
    machine.fault = lambda build: SIGILL
    with pytest.raises(SystemExit):
        engine.prove(engine.Way(), engine.attempt)
    assert Build.read(machine.installed / library.BUILD).fault == SIGILL


def test_a_library_for_another_processor_is_not_even_loaded(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(engine, monkeypatch, tmp_path, XEON | {"avx512_fp16"})
    monkeypatch.setenv("CFLAGS", "-mavx512fp16")
    with pytest.raises(SystemExit) as stop:
        engine.prove(engine.Way(without=("AMX",)), engine.attempt)
    assert stop.value.code == (
        "error: llama.cpp, built by gcc 12.2.0, was built for avx512_fp16, which this processor has not, "
        "also without AMX; CMAKE_ARGS or CFLAGS ask for it"
    )
    assert machine.tested == 0


def test_what_one_machine_finds_of_a_portable_build_is_not_kept(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(engine, monkeypatch, tmp_path, frozenset(("avx2",)))
    machine.fault = lambda build: SIGILL
    assert engine.attempt(engine.portable()).fault == SIGILL
    machine.fault = lambda build: None
    assert engine.attempt(engine.portable()).fault is None
    assert len(machine.built) == 1


def test_keys(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    native, portable = engine.Way(), engine.portable()
    without = native.leaving_out("AVX-512", XEON)
    before = [engine._key(way) for way in (native, without, portable)]
    assert len(set(before)) == 3
    monkeypatch.setattr(library, "instruction_sets", lambda: XEON | {"avx10"})
    after = [engine._key(way) for way in (native, without, portable)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]
    monkeypatch.setattr(engine, "_version", lambda *names: "c++ 14.2.0")
    assert all(engine._key(way) not in after for way in (native, without, portable))


def stub(tmp_path: Path, text: str) -> str:
    path = tmp_path / "stub"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("ends", "fault"),
    [
        ("exit 0", None),
        ("kill -ILL $$", "dies here with SIGILL (q4_K weights, dense)"),
        ("kill -ABRT $$", "dies here with SIGABRT (q4_K weights, dense)"),
        ("echo 'q4_K weights: 0.7 off'; exit 3", "computes wrong values here: q4_K weights: 0.7 off"),
    ],
)
def test_how_the_self_test_ends(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str, fault: str | None
) -> None:
    monkeypatch.setattr(engine.sys, "executable", stub(tmp_path, f"echo 'q4_K weights, dense'\n{ends}"))
    assert engine.test("mainline") == fault


@pytest.mark.parametrize(
    ("ends", "message"), [("kill -KILL $$", "it was killed"), ("exit 1", "No space left")]
)
def test_what_is_not_the_engines_fault_decides_nothing(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str, message: str
) -> None:
    words = "" if "KILL" in ends else "echo 'OSError: No space left on device' >&2\n"
    monkeypatch.setattr(engine.sys, "executable", stub(tmp_path, words + ends))
    with pytest.raises(engine.UndecidedError, match=f"self-test of llama.cpp could not be run: .*{message}"):
        engine.test("mainline")


def test_a_build_that_cannot_be_loaded_here(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine.sys, "executable", stub(tmp_path, "echo 'no libcuda.so.1'; exit 4"))
    with pytest.raises(engine.UndecidedError, match=r"could not be run: no libcuda.so.1; see"):
        engine.test("mainline")
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    assert engine.test("mainline") is None
    line = "llama.cpp is not tested, since it cannot be loaded here: no libcuda.so.1\n"
    assert capsys.readouterr().out == line


def test_an_ik_that_fails_is_said_once_and_refused_from_then_on(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "ik_llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    result = importlib.util.spec_from_file_location("ik_llama_cpp", package / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: result)
    monkeypatch.setattr(library, "instruction_sets", lambda: XEON | {"fma", "f16c"})
    monkeypatch.setattr(engine, "test", lambda name: SIGILL)
    engine.test_ik()
    assert capsys.readouterr().out == f"ik_llama.cpp {SIGILL}; recipes of engine ik will be refused\n"
    library.folder.cache_clear()
    try:
        with pytest.raises(
            QuantmillError,
            match=r"engine ik: ik-llama-cpp-python dies here with SIGILL .*; use recipes of engine mainline",
        ):
            library.folder("ik")
        monkeypatch.setattr(engine, "test", lambda name: None)
        engine.test_ik()
        assert library.folder("ik") == package / "lib"
    finally:
        library.folder.cache_clear()


def test_what_a_build_needs_is_the_compilers_own_word(engine: Any, tmp_path: Path) -> None:
    compiler = stub(
        tmp_path, 'echo "#define __AVX2__ 1\n#define __AMX_INT8__ 1\n#define __VERSION__ \\"12.2.0\\""'
    )
    commands = [
        {"file": "/src/ggml.c", "command": "cc -c /src/ggml.c"},
        {"file": "/src/ggml-cpu/ggml-cpu.c", "command": f"{compiler} -O3 -march=native -c /src/ggml-cpu.c"},
    ]
    (tmp_path / "compile_commands.json").write_text(json.dumps(commands), encoding="utf-8")
    assert engine.compiled(tmp_path) == Build(frozenset(("avx2", "amx_int8")), None, "stub 12.2.0")


def test_the_portable_options_are_known(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert "-DGGML_NATIVE=OFF" in engine.portable().cmake
    assert {"-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON"} <= set(
        engine.portable().cmake.split()
    )
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SystemExit, match="no portable build is known for riscv64"):
        engine.portable()
