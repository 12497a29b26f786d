"""The table of stages, and the command that lists and runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quantmill import __main__, spec
from quantmill.stages import STAGES, VERSIONS, key
from quantmill.tools import TOOLS

PACKAGE = Path(__file__).parents[2] / "workflow" / "quantmill"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "quantmill", *arguments]
    return subprocess.run(words, cwd=PACKAGE.parent, capture_output=True, encoding="utf-8", check=False)


def source(name: str) -> str:
    return PACKAGE.joinpath(*name.split(".")).with_suffix(".py").read_text("utf-8")


@pytest.mark.parametrize("name", [*STAGES, *TOOLS])
def test_each_stage_is_a_command(name: str) -> None:
    assert 'if __name__ == "__main__":' in source(name)


def test_each_command_is_a_stage() -> None:
    commands = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if "command.run(" in path.read_text("utf-8") and path.name != "command.py"
    }
    assert commands <= STAGES.keys() | TOOLS.keys()


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_a_stage_takes_the_arguments_that_the_table_says(stage: object) -> None:
    name, threads, store = stage.name, stage.threads, stage.store  # type: ignore[attr-defined]
    text = source(name)
    assert bool(re.search(r"command\.parser\([^)]*threads=True", text)) == threads
    assert bool(re.search(r"command\.parser\([^)]*store=True", text)) == store


def test_names_in_specs_that_modules_no_longer_have() -> None:
    # Finished files have these names in their specs: another name would make them stale.
    renamed = {stage.name: stage.key for stage in STAGES.values() if stage.key}
    assert renamed == {
        "sensitivity.imported": "budget.imported",
        "budget.feasibility": "budget.reach",
        "publish.split": "publish.cut",
    }
    assert {key(name) for name in STAGES} | {
        "measure.reference",
        "sensitivity.errors",
        "sensitivity.probe",
    } == (VERSIONS.keys())
    assert json.loads(spec.make("budget.feasibility", {}, {}))["stage"] == "budget.reach"
    assert key("budget.reach") == "budget.reach"


def test_without_arguments_it_lists_all_stages() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    for stage in (*STAGES.values(), *TOOLS.values()):
        assert f"\n{stage.name:<22}{stage.what}\n" in done.stdout
    words = " ".join(done.stdout.split())
    for stage in STAGES.values():
        assert f"reads {stage.reads} writes {stage.writes}" in words
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert run("--help").stdout == done.stdout


def test_a_stage_is_run_with_its_arguments() -> None:
    assert "--facts FACTS" in run("measure.speed", "--help").stdout
    done = run("measure.speed", "--spec", "x")
    assert done.returncode == 2
    assert "no canonical JSON" in done.stderr


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("mesure.speed", "did you mean measure.speed?"),
        ("store", "`python -m quantmill` lists the stages"),
        ("os", "`python -m quantmill` lists the stages"),
    ],
)
def test_a_stage_that_there_is_not_is_one_line(name: str, cure: str) -> None:
    done = run(name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {name}: no stage of that name; {cure}\n"


def test_the_command_imports_no_more_than_the_watcher() -> None:
    # The parent waits beside each stage: what it imports costs each of them time and memory.
    code = (
        "import sys; import quantmill.__main__; print(*sorted(set(m for m in sys.modules"
        " if m.startswith('quantmill') or m in ('argparse', 'json', 'textwrap', 'difflib', 'numpy'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {
        "quantmill",
        "quantmill.__main__",
        "quantmill.errors",
        "quantmill.recorder",
        "quantmill.signals",
        "quantmill.stages",
        "quantmill.tools",
        "quantmill.watch",
    }
    assert __main__.listing()
