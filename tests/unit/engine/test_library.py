"""Two engines: where they lie, that a process has one of them, and what is refused."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ik import NEEDED
from quantmill.engine import library
from quantmill.engine.dryrun import dry_run
from quantmill.errors import QuantmillError


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No engine is known to be installed yet, nor in use."""
    monkeypatch.setattr(library, "_in_use", [])
    library.folder.cache_clear()
    library.check.cache_clear()
    yield monkeypatch
    library.folder.cache_clear()
    library.check.cache_clear()


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_a_process_has_one_engine(fresh: pytest.MonkeyPatch) -> None:
    assert library.in_use() == "mainline"
    library.use("mainline")
    with pytest.raises(RuntimeError, match="has the engine mainline, and cannot have ik too"):
        library.use("ik")


@NEEDED
def test_the_modules_of_an_engine_claim_the_process() -> None:
    for first, second in (("ik", "mainline"), ("mainline", "ik")):
        done = run(f"from quantmill.engine import {first}\nfrom quantmill.engine import {second}")
        assert done.returncode == 1
        assert f"has the engine {first}, and cannot have {second} too" in done.stderr


def test_what_measures_and_quantizes_loads_no_engine_by_itself() -> None:
    stages = ("quantize.write", "measure.divergence", "measure.perplexity", "measure.speed")
    program = "import sys\n" + "".join(f"import quantmill.{stage}\n" for stage in stages)
    done = run(program + "print([name for name in ('llama_cpp', 'ik_llama_cpp') if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


@NEEDED
def test_the_structs_are_as_large_as_the_library_has_them() -> None:
    done = run(
        "import ctypes\nfrom quantmill.engine import ik\n"
        "class Short(ctypes.Structure): _fields_ = ik.native.llama_context_params._fields_[:-1]\n"
        "ik.native.llama_context_params = Short\nik._lib()"
    )
    assert "llama_context_default_params writes 216 bytes where 208 were expected" in done.stderr


@NEEDED
def test_digests_are_of_each_engines_own_libraries(tmp_path: Path) -> None:
    seen: list[Path] = []

    def sha256(path: Path) -> str:
        seen.append(path)
        return path.name

    assert library.digest(sha256) != library.digest(sha256, "ik")
    assert {path.parent for path in seen} == {library.folder("mainline"), library.folder("ik")}


def test_an_engine_that_is_not_installed(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        QuantmillError, match="engine ik: ik-llama-cpp-python is not installed; it exists for"
    ):
        library.use("ik")
    with pytest.raises(
        QuantmillError, match="engine mainline: llama-cpp-python is not installed; run `make`"
    ):
        library.use("mainline")


@NEEDED
def test_a_processor_that_it_was_not_built_for(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    know(fresh)
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu sse4_2 avx f16c\n", encoding="utf-8")
    fresh.setattr(library, "_CPUINFO", tmp_path / "cpuinfo")
    with pytest.raises(
        QuantmillError, match=r"engine ik: .* needs a processor with avx2, fma, which this one"
    ):
        library.use("ik")
    library.use("mainline")


def know(fresh: pytest.MonkeyPatch, **facts: Any) -> None:
    """What `make env` recorded of each engine."""
    fresh.setattr(library.Build, "read", lambda path: library.Build(**facts))


def test_what_it_was_built_for_and_this_processor_lacks(fresh: pytest.MonkeyPatch) -> None:
    know(fresh, needs=frozenset(("avx2", "avx512f", "avx512bw", "amx_tile", "amx_int8")))
    fresh.setattr(library, "instruction_sets", lambda: frozenset(("avx2", "avx512f")))
    line = (
        "engine mainline: llama-cpp-python needs a processor with amx_int8, amx_tile, avx512bw, which this "
        "one has not; build it here (`make -B env`), or once for all machines (`make env PORTABLE=1`)"
    )
    with pytest.raises(QuantmillError, match=f"^{re.escape(line)}$"):
        library.use("mainline")
    with pytest.raises(QuantmillError, match=f"^{re.escape(line)}$"):
        dry_run(Path("any.gguf"), 15, imatrix=False)
    assert library.digest(lambda path: path.name), "a login node only looks at its bytes"


def test_many_that_are_missing_are_counted(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(library, "instruction_sets", lambda: frozenset(("fpu",)))
    assert library.lacking(frozenset("abcdef")) == "a, b, c and 3 more"


@pytest.mark.parametrize(
    ("cpuinfo", "result"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2\nprocessor\t: 1\nflags\t\t: fpu\n", {"fpu", "avx2"}),
        ("processor\t: 0\nFeatures\t: fp asimddp\nCPU part\t: 0xd0c\n", {"fp", "asimddp"}),
        ("processor\t: 0\nisa\t: rv64imafdc\n", set()),
    ],
)
def test_instruction_sets(fresh: pytest.MonkeyPatch, tmp_path: Path, cpuinfo: str, result: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    fresh.setattr(library, "_CPUINFO", tmp_path / "cpuinfo")
    assert library.instruction_sets() == result


def test_where_the_system_does_not_tell_nothing_is_missing(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    know(fresh, needs=frozenset(("avx2",)))
    fresh.setattr(library, "_CPUINFO", tmp_path / "none")
    library.use("mainline")


def test_an_engine_whose_self_test_failed(fresh: pytest.MonkeyPatch) -> None:
    know(fresh, fault="dies here with SIGILL (q4_0 weights, dense)")
    for engine, cure in (("ik", "use recipes of engine mainline"), ("mainline", "run `make env` again")):
        with pytest.raises(
            QuantmillError, match=rf"{engine}: .* dies here with SIGILL \(q4_0 weights, dense\) .*; {cure}"
        ):
            library.digest(str, engine)


def test_what_is_known_of_a_build_is_kept(tmp_path: Path) -> None:
    build = library.Build(frozenset(("avx2", "fma")), None, "gcc 12.2.0", "-DGGML_NATIVE=ON", "-mno-avx512f")
    build.write(tmp_path / "x.json")
    assert library.Build.read(tmp_path / "x.json") == build
    assert library.Build.read(tmp_path / "none") == library.Build()


@pytest.mark.parametrize("stage", ["measure.imatrix", "evaluate.humaneval"])
def test_a_stage_says_so_in_one_line_and_loads_nothing(stage: str) -> None:
    done = run(
        "import atexit, runpy, sys\n"
        "from quantmill.engine import library\n"
        "library.Build.read = lambda path: library.Build(frozenset(('avx1024',)))\n"
        "atexit.register(lambda: print('llama_cpp' in sys.modules))\n"
        f"runpy.run_module('quantmill.{stage}', run_name='__main__')"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: engine mainline: llama-cpp-python needs a processor with avx1024, ")
    assert (done.stderr.count("\n"), done.stdout) == (1, "False\n")
