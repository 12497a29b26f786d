"""How a stage speaks to the command line."""

import argparse
import sys
from pathlib import Path

import pytest

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.progress import Log

SPEC = '{"config":{"chunks":4}}'


def run(monkeypatch: pytest.MonkeyPatch, main: object, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["stage", *arguments])
    command.run(command.parser("A stage.", threads=True, store=True), main)  # type: ignore[arg-type]


def test_a_stage_gets_its_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[argparse.Namespace] = []
    more = ["--threads", "3", "--store", str(tmp_path), "--store-max", "1000"]
    run(monkeypatch, lambda args, log: seen.append(args), "--spec", SPEC, *more)
    assert seen[0].spec == {"config": {"chunks": 4}}
    assert (seen[0].threads, seen[0].store, seen[0].store_max) == (3, tmp_path, 1000)


def test_an_error_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def main(args: argparse.Namespace, log: Log) -> None:
        raise QuantmillError("no such column", "data.parquet: text", "the columns are: a, b")

    log = tmp_path / "x.log"
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, main, "--spec", SPEC, "--store", str(tmp_path), "--log", str(log))
    line = "error: data.parquet: text: no such column; the columns are: a, b\n"
    assert stop.value.code == 1
    assert capfd.readouterr().err == line
    assert log.read_text("utf-8") == line


def test_an_interrupt_is_130_and_silent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def main(args: argparse.Namespace, log: Log) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, main, "--spec", SPEC, "--store", str(tmp_path))
    assert stop.value.code == 130
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3"])
def test_a_spec_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, lambda args, log: None, "--spec", text, "--store", str(tmp_path))
    assert stop.value.code == 2
    assert "no canonical JSON with a field `config`" in capfd.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def main(args: argparse.Namespace, log: Log) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, main, "--spec", SPEC, "--store", str(tmp_path))
