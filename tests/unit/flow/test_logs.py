"""The errors and warnings of stages are printed again at the end of a run."""

import os
import time
from pathlib import Path

import pytest

from quantmill.flow.logs import Logs


def test_each_line_once_with_its_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "m" / "logs" / "old.log"
    old.parent.mkdir(parents=True)
    old.write_text("warning: of an earlier run\n", encoding="utf-8")
    os.utime(old, (time.time() - 60, time.time() - 60))
    logs = Logs(tmp_path)
    logs.started -= 1  # file systems round times down
    one, two = tmp_path / "m" / "logs" / "kld" / "Q4.log", tmp_path / "logs" / "publish.log"
    for log in (one, two):
        log.parent.mkdir(parents=True)
        log.write_bytes(b"begun \xff\nwarning: low\nerror: m: bad; mend it\n")
    logs.repeat_warnings()
    assert capsys.readouterr().err == f"warning: low ({two} and 1 more)\n"
    logs.repeat_errors()
    assert capsys.readouterr().err == "error: m: bad; mend it\n"
    two.unlink()
    logs.repeat_warnings()
    assert capsys.readouterr().err == f"warning: low ({one})\n"
