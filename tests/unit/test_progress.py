"""Plain lines in a log, a bar only on a terminal."""

import sys
from pathlib import Path

import pytest

from quantmill import progress


def test_lines_go_to_the_log_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = progress.Log(tmp_path / "logs" / "x.log")
    log.say("one")
    log.say("two")
    assert (tmp_path / "logs" / "x.log").read_text("utf-8") == "one\ntwo\n"
    assert capfd.readouterr() == ("", "")


def test_without_a_file_lines_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    progress.Log().say("one")
    assert capfd.readouterr().err == "one\n"


def test_a_log_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    progress.Log(path).say("before")
    progress.Log(path).say("after")
    assert path.read_text("utf-8") == "after\n"


def test_rate_and_remaining_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    path = tmp_path / "x.log"
    with progress.Log(path).progress("imatrix", 40, "chunks") as bar:
        now[0] += 5
        bar.add(10)
        assert path.read_text("utf-8") == ""  # a line every ten seconds, not one a unit
        now[0] += 5
        bar.add(10)
        now[0] += 10
        bar.add(20)
    assert path.read_text("utf-8").splitlines() == [
        "imatrix: 20 of 40 chunks, 2 chunks/s, 10 s left",
        "imatrix: 40 of 40 chunks, 2 chunks/s, 0 s left",
        "imatrix: 40 of 40 chunks, 2 chunks/s, in 20.0 s",
    ]


def test_no_bar_where_there_is_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with progress.Log(tmp_path / "x.log").progress("imatrix", 2, "chunks") as bar:
        bar.add(2)
    assert capfd.readouterr().err == ""


def test_a_terminal_shows_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.Log(tmp_path / "x.log").progress("imatrix", 4, "chunks") as bar:
        bar.add(3)
    assert "imatrix:" in capsys.readouterr().err
