"""The environment of stages: pinned packages alone, whatever the user's variables say."""

import os
import sys
from pathlib import Path

import pytest

from quantmill import environment
from quantmill.errors import QuantmillError


def test_a_python_path_with_packages_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").touch()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.py").touch()
    (other / "numpy").mkdir()  # only of that name: Python takes the real one
    environment.check_python_path("")
    environment.check_python_path(os.pathsep.join([str(other), str(tmp_path / "missing"), ""]))
    environment.check_python_path(next(folder for folder in sys.path if folder.endswith("site-packages")))
    with pytest.raises(QuantmillError) as refused:
        environment.check_python_path(os.pathsep.join([str(other), str(tmp_path)]))
    assert str(refused.value) == (
        f"PYTHONPATH: {tmp_path} holds a numpy of its own, which would be used in place of the pinned one;"
        " unset PYTHONPATH, or unload the environment module that sets it"
    )


def test_stages_see_the_library_and_no_packages_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/their/packages")
    monkeypatch.setenv("PATH", "/usr/bin")
    result = environment.of_stages("/the/library")
    assert result["PYTHONPATH"] == "/the/library"
    assert result["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert result["PYTHONNOUSERSITE"] == result["PYTHONUTF8"] == "1"
