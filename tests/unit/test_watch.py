"""Stages that die: real processes, ended by real signals, and the one line that is said of each."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# A stage that does what its spec says.
STAGE = """
import ctypes, os, signal, sys, time
from quantmill import command
from quantmill.engine import evaluator, library

def main(args, log):
    log.say("begun")
    exec(args.spec["config"]["do"], globals())

command.run(command.parser("A stage."), main)
"""
# A real assertion of the library: a row that begins within a block.
ASSERTION = "GGML_ASSERT(start % type_traits[type].blck_size == 0) failed"
ASSERT = "library.load('{}').ggml_quantize_chunk(12, None, None, *map(ctypes.c_int64, (1, 1, 256)), None)"

Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    (tmp_path / "dying.py").write_text(STAGE, encoding="utf-8")

    def started(do: str, *more: str, log: bool = True, **environment: str) -> subprocess.Popen[str]:
        words = ["-m", "dying", "--spec", json.dumps({"config": {"do": do}})]
        words += ["--log", str(tmp_path / "x.log")] if log else []
        return subprocess.Popen(
            [sys.executable, "-m", "quantmill.watch", sys.executable, *words, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path)} | environment,
        )

    return started


@pytest.fixture
def run(start: Start, tmp_path: Path) -> Run:
    """(exit code, stderr, log) of a watched stage."""

    def ran(do: str, *more: str, **environment: str) -> tuple[int, str, str]:
        process = start(do, *more, **environment)
        _, stderr = process.communicate(timeout=60)
        return process.returncode, stderr, (tmp_path / "x.log").read_text("utf-8")

    return ran


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "SIGILL",
            "ended by SIGILL, an instruction that this processor does not have; build the engine for this "
            "processor: make -B env",
        ),
        ("SIGSEGV", "ended by SIGSEGV; run it again; where it ends so again, report this line"),
        ("SIGTERM", "ended by SIGTERM; run it again: finished work is in the store"),
        (
            "SIGBUS",
            "ended by SIGBUS; a file that it read was cut short, or its disk is full or failing: check both",
        ),
    ],
)
def test_one_line_names_stage_signal_and_cure(run: Run, name: str, line: str) -> None:
    code, stderr, log = run(f"os.kill(os.getpid(), signal.{name})")
    assert code == 128 + signal.Signals[name]
    assert stderr == f"error: dying: {line}\n"
    assert log == f"begun\nerror: dying: {line}\n"


def test_a_kill_says_what_was_taken_asked_for_and_there(run: Run) -> None:
    code, stderr, _ = run("x = b'x' * 60_000_000; os.kill(os.getpid(), signal.SIGKILL)", "--memory", "2000")
    assert code == 137
    result = re.fullmatch(
        r"error: dying: ended by SIGKILL, most likely for memory: it used ([\d.]+) MiB, its job "
        r"requested 1\.86 GiB, and (this machine|its cgroup) has [\d.]+ [GM]iB; free some, allow it more, "
        r"or use a larger machine\n",
        stderr,
    )
    assert result is not None and 60 < float(result[1]) < 400, stderr


def test_what_it_was_at_and_what_the_library_said_last(run: Run) -> None:
    text = "evaluator.Listener()(3, b'older', None); evaluator.Listener()(3, b'no room left', None); "
    at = "command.doing('x' * 5000); command.doing('row 12 of chats.parquet'); "
    _, stderr, _ = run(text + at + "os.kill(os.getpid(), signal.SIGSEGV)")
    assert stderr == (
        "error: dying: ended by SIGSEGV at row 12 of chats.parquet (last message: no room left); leave that "
        "out, or report this line\n"
    )


def test_what_it_was_at_is_forgotten_when_that_is_done(run: Run) -> None:
    _, stderr, _ = run("command.doing('row 12'); command.doing(''); os.kill(os.getpid(), signal.SIGSEGV)")
    assert "row 12" not in stderr


@pytest.mark.parametrize(("engine", "base"), [("mainline", "ggml-base"), ("ik", "ggml")])
def test_an_assertion_of_ggml_is_the_line_and_no_debugger_is_started(
    run: Run, tmp_path: Path, engine: str, base: str
) -> None:
    for name in ("gdb", "lldb"):
        debugger = tmp_path / "bin" / name
        debugger.parent.mkdir(exist_ok=True)
        debugger.write_text(f"#!/bin/sh\ntouch {tmp_path}/debugged\n", encoding="utf-8")
        debugger.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    code, stderr, log = run(f"library.use('{engine}'); {ASSERT.format(base)}", PATH=path)
    assert code == 134
    assert re.fullmatch(
        rf"error: dying: ended by SIGABRT \(last message: ggml\.c:\d+: {re.escape(ASSERTION)}\); see whether "
        r"llama\.cpp's own tools run this model: .*\n",
        stderr,
    )
    assert log.splitlines()[-1] + "\n" == stderr
    assert not (tmp_path / "debugged").exists()


def test_an_exception_that_nobody_catches(run: Run) -> None:
    code, stderr, _ = run("ctypes.CDLL('libstdc++.so.6')._ZSt9terminatev()")
    assert code == 134
    assert "ended by SIGABRT (last message: terminate called without an active exception); " in stderr


def test_where_no_signal_ends_it_nothing_is_lost_or_added(start: Start) -> None:
    process = start(
        "os.write(1, b'native out\\n'); os.write(2, b'native\\n'); print('out');"
        "print('err', file=sys.stderr); sys.exit(3)"
    )
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (3, "out\n", "err\nnative out\nnative\n")


def test_children_of_the_stage_keep_no_record(run: Run) -> None:
    child = "import os, sys; sys.exit('QUANTMILL_WATCHED' in os.environ)"
    assert run(f"import subprocess; sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))")[0] == 0


def test_death_before_the_stage_begins(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text("import os; os.kill(os.getpid(), 4)", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "quantmill.watch", sys.executable, "-m", "early"],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 132
    assert done.stderr.startswith("error: early: ended by SIGILL, ")
    assert done.stderr.count("\n") == 1


def test_a_command_that_there_is_not() -> None:
    words = [sys.executable, "-m", "quantmill.watch", "no-such-program"]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (
        127,
        "error: no-such-program: cannot be run (No such file or directory)\n",
    )


SLEEP = "print(os.getpid(), flush=True); time.sleep(60)"


def begun(process: subprocess.Popen[str]) -> int:
    """The process id of a stage that sleeps, once it does."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def gone(pid: int) -> bool:
    """Whether a process ends within ten seconds; a zombie has ended."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_terminals_interrupt_ends_it_silently(start: Start) -> None:
    process = start(SLEEP)
    begun(process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr is not None and process.stderr.read() == ""


def test_who_ends_the_watcher_ends_the_stage(start: Start) -> None:
    process = start(SLEEP)
    stage = begun(process)
    process.terminate()
    assert process.wait(10) == 143
    assert process.stderr is not None and "dying: ended by SIGTERM" in process.stderr.read()
    assert gone(stage)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="how a zombie is told needs /proc")
def test_the_stage_does_not_outlive_a_watcher_that_is_killed(start: Start) -> None:
    process = start(SLEEP)
    stage = begun(process)
    process.kill()
    process.wait(10)
    assert gone(stage)
