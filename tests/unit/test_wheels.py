"""Every pin of the locks has a wheel for each Python and platform, or is one of the named sdists."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheels() -> ModuleType:
    place = importlib.util.spec_from_file_location("envs_wheels", ROOT / "envs" / "wheels.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules[place.name] = module
    place.loader.exec_module(module)
    return module


def test_no_pin_lacks_a_wheel(wheels: ModuleType) -> None:
    assert len(wheels.MACHINES) == 12
    assert wheels.missing(wheels.pins(), wheels.table()) == []


def test_the_table_has_what_pip_takes_and_no_more(wheels: ModuleType) -> None:
    assert wheels.chosen(wheels.pins(), wheels.table()) == wheels.table()


def test_the_pythons_are_those_of_the_project(wheels: ModuleType) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (first, *_, last), names = wheels.PYTHONS, (ROOT / "Makefile").read_text("utf-8")
    assert f'requires-python = ">={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}"' in project
    assert f"{first} <= sys.version_info < {(last[0], last[1] + 1)}" in names
    tried = [f"python{major}.{minor}" for major, minor in reversed(wheels.PYTHONS)]
    assert f"for python in {' '.join(tried)} python3;" in names
    for conda in (ROOT / "envs").glob("*.yaml"):
        assert re.findall(r"- python =([0-9.]+)", conda.read_text("utf-8"))[0] in {t[6:] for t in tried}


def test_the_sdists_are_those_that_make_lets_pip_build(wheels: ModuleType) -> None:
    options = re.findall(r"--no-binary ([a-z0-9,-]+)", (ROOT / "Makefile").read_text("utf-8"))
    built = {name for option in options for name in option.split(",")}
    assert built | {"llama-cpp-python"} == wheels.SDISTS


@pytest.mark.parametrize(
    ("tag", "fits"),
    [
        ("py3-none-any", {"linux x86_64", "linux aarch64", "darwin arm64"}),
        ("cp312-abi3-manylinux_2_28_x86_64.manylinux_2_24_x86_64", {"linux x86_64"}),
        ("cp313-cp313-manylinux2014_aarch64", {"linux aarch64"}),
        ("cp313-cp313-macosx_11_0_universal2", {"darwin arm64"}),
        ("cp313-cp313-macosx_15_0_arm64", set()),
        ("cp313-cp313-manylinux_2_31_x86_64", set()),
        ("cp313-cp313-musllinux_1_2_x86_64", set()),
        ("cp313-cp313t-manylinux_2_28_x86_64", set()),
        ("cp314-cp314-manylinux_2_28_x86_64", set()),
    ],
)
def test_what_a_wheel_serves(wheels: ModuleType, tmp_path: Path, tag: str, fits: set[str]) -> None:
    (tmp_path / "some.lock").write_text("a-b==1.0 \\\n    --hash=sha256:77\n    # via c\n", encoding="utf-8")
    lines = wheels.missing(wheels.pins(tmp_path), [wheels.Wheel("a-b", "1.0", tag, "77")])
    lacking = {line.removeprefix("some.lock: a-b 1.0: no wheel for Python 3.13 on ") for line in lines}
    platforms = {"linux x86_64", "linux aarch64", "darwin arm64"}
    assert platforms - lacking == fits


def test_a_wheel_that_the_lock_has_no_hash_of_does_not_count(wheels: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "some.lock").write_text("a-b==1.0 \\\n    --hash=sha256:77\n", encoding="utf-8")
    pins = wheels.pins(tmp_path)
    assert wheels.missing(pins, [wheels.Wheel("a-b", "1.0", "py3-none-any", "77")]) == []
    assert len(wheels.missing(pins, [wheels.Wheel("a-b", "1.0", "py3-none-any", "78")])) == 12
    assert len(wheels.missing(pins, [wheels.Wheel("a-b", "1.1", "py3-none-any", "77")])) == 12


def test_a_marker_says_where_a_pin_is_wanted(wheels: ModuleType, tmp_path: Path) -> None:
    marker = "python_full_version < '3.14' and platform_machine == 'x86_64' and sys_platform == 'linux'"
    (tmp_path / "some.lock").write_text(f"a==1 ; {marker} \\\n    --hash=sha256:77\n", encoding="utf-8")
    assert wheels.missing(wheels.pins(tmp_path), []) == [
        f"some.lock: a 1: no wheel for Python 3.{minor} on linux x86_64" for minor in (11, 12, 13)
    ]
