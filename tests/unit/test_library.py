"""Two engines: where they lie, that a process has one of them, and what is refused."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ik import NEEDED
from quantmill.engine import library
from quantmill.errors import QuantmillError


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No engine is known to be installed yet, nor in use."""
    monkeypatch.setattr(library, "_in_use", [])
    library.folder.cache_clear()
    yield monkeypatch
    library.folder.cache_clear()


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
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu sse4_2 avx f16c\n", encoding="utf-8")
    fresh.setattr(library, "_CPUINFO", tmp_path / "cpuinfo")
    with pytest.raises(
        QuantmillError, match=r"engine ik: .* needs a processor with avx2, fma, which this one"
    ):
        library.use("ik")
    library.use("mainline")
