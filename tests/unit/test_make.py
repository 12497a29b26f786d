"""`make` on a machine that lacks something says what, in one line."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make")
    environment = {"PATH": path, "HOME": os.environ.get("HOME", "/")}
    command = [make, "--no-print-directory", "-C", str(ROOT), "check", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def python_stub(folder: Path, code: int) -> str:
    stub = folder / "python"
    stub.write_text(f"#!/bin/sh\nexit {code}\n", encoding="utf-8")
    stub.chmod(0o755)
    return f"PYTHON={stub}"


def test_all_there(tmp_path: Path) -> None:
    (tmp_path / "clang++").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "clang++").chmod(0o755)
    done = check(str(tmp_path), python_stub(tmp_path, 0))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_compiler(tmp_path: Path) -> None:
    done = check(str(tmp_path), python_stub(tmp_path, 0))
    assert done.returncode != 0
    first = done.stderr.splitlines()[0]
    assert first.startswith("error: no C++ compiler (c++, g++ or clang++)")
    assert "apt-get install g++" in first


def test_wrong_python(tmp_path: Path) -> None:
    done = check(os.environ["PATH"], python_stub(tmp_path, 1))
    assert done.returncode != 0
    first = done.stderr.splitlines()[0]
    assert first.startswith(f"error: {tmp_path}/python: no Python 3.11 to 3.14 with venv; install one")


def test_no_python_at_all(tmp_path: Path) -> None:
    done = check(os.environ["PATH"], f"PYTHON={tmp_path}/nothing")
    assert done.returncode != 0
    assert "nothing: no Python 3.11 to 3.14 with venv" in done.stderr.splitlines()[0]


def stubs(folder: Path, **works: bool) -> str:
    """A folder with these programs, of which some work: a path to look for them in."""
    for name, fits in works.items():
        stub = folder / name.replace("_", ".")
        stub.write_text(f"#!/bin/sh\nexit {0 if fits else 1}\n", encoding="utf-8")
        stub.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3_11": True, "python3_13": True, "python3": True}, "python3.13"),
        ({"python3_14": False, "python3_12": True, "python3": True}, "python3.12"),
        ({"python3_14": False, "python3": True}, "python3"),
    ],
)
def test_the_newest_python_that_works_is_taken(tmp_path: Path, there: dict[str, bool], taken: str) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make")
    there |= {"c++": True}
    command = [make, "--no-print-directory", "--dry-run", "--always-make", "-C", str(ROOT), "env"]
    environment = {"PATH": stubs(tmp_path, **there), "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert re.findall(r"(\S+) -m venv \.venv\n", done.stdout) == [taken], done.stderr


def test_none_of_the_pythons_works(tmp_path: Path) -> None:
    done = check(stubs(tmp_path, python3_14=False, python3=False))
    assert done.returncode != 0
    assert done.stderr.startswith("error: python3: no Python 3.11 to 3.14 with venv; install one")


def test_no_file_names_an_index() -> None:
    files = [*(path for path in (ROOT / "envs").iterdir() if path.is_file()), ROOT / "Makefile"]
    named = [path for path in files if "://" in path.read_text("utf-8")]
    assert named == []


@pytest.mark.parametrize(
    ("environment", "locks"),
    [("quantmill", ("requirements", "engine")), ("evals", ("requirements", "engine", "evals"))],
)
def test_conda_environments_have_the_versions_of_the_locks(environment: str, locks: tuple[str, ...]) -> None:
    text = "".join((ROOT / "envs" / f"{name}.lock").read_text("utf-8") for name in locks)
    locked = set(re.findall(r"^([a-z0-9-]+==\S+)", text, re.MULTILINE))
    file = (ROOT / "envs" / f"{environment}.yaml").read_text("utf-8")
    listed = set(re.findall(r"^ +- ([a-z0-9-]+==\S+)", file, re.MULTILINE))
    assert listed
    assert listed <= locked


@pytest.mark.parametrize("extra", ["evals", "cluster"])
def test_an_extra_asks_for_no_other_version_than_a_run(extra: str) -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / "envs" / f"{name}.lock").read_text("utf-8")
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))

    expected, others = pins(extra), pins("requirements") | pins("build") | pins("dev")
    assert expected.keys() - others.keys()
    assert {name: others[name] for name in expected.keys() & others} == {
        name: expected[name] for name in expected.keys() & others
    }


@pytest.mark.parametrize(
    ("made", "asked", "kind"),
    [
        ("", [], "native"),
        ("", ["PORTABLE=1"], "portable"),
        ("native", [], None),
        ("native", ["PORTABLE=0"], None),
        ("native", ["PORTABLE=1"], "portable"),
        ("portable", [], None),
        ("portable", ["PORTABLE=1"], None),
        ("portable", ["PORTABLE=0"], "native"),
    ],
)
def test_an_environment_is_made_anew_for_another_kind_of_engine(
    tmp_path: Path, made: str, asked: list[str], kind: str | None
) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "envs", tmp_path / "envs")
    (tmp_path / "pyproject.toml").write_text("", encoding="utf-8")
    if made:
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv" / "ready").write_text(f"{made}\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("PORTABLE", "MAKEFLAGS")}
    command = [make, "--dry-run", "-C", str(tmp_path), "env", *asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert re.findall(r"envs/engine.py (\w+)", done.stdout) == ([] if kind is None else [kind]), done.stderr


def test_help_names_every_target_of_make_and_snakemake() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    phony = re.search(r"^\.PHONY: cards (.*) help$", makefile, re.MULTILINE)
    assert phony is not None
    rows = set(re.findall(r"^ +(?:make )?([\w-]+) {2,}\S", shown, re.MULTILINE))
    assert set(phony[1].split()) - {"check"} <= rows
    snakefile = (ROOT / "workflow" / "Snakefile").read_text("utf-8")
    assert {*re.findall(r"^rule (\w+):", snakefile, re.MULTILINE), "publish"} <= rows
