"""The project's own library: built where it is missing, and what is refused."""

import sys
from pathlib import Path

import pytest

from quantmill.engine import native
from quantmill.errors import QuantmillError


def test_it_is_built_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    path = native.built()
    assert path.parent == tmp_path / "lib"
    assert path.stat().st_size
    monkeypatch.setenv("CXX", "/no/compiler")  # not asked again
    assert native.built() == path


@pytest.mark.parametrize(
    ("compiler", "line"),
    [
        ("false", r"feedback\.cpp: cannot be compiled \(the compiler says nothing\); use another C\+\+"),
        ("/no/compiler", r"feedback\.cpp: cannot be built into the environment \(No such file"),
    ],
)
def test_a_build_that_fails_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, line: str
) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(QuantmillError, match=line):
        native.built()
    assert not list((tmp_path / "lib").iterdir())


def test_without_a_compiler_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QuantmillError, match=r"feedback\.cpp: no C\+\+ compiler"):
        native.built()
