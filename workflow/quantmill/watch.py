"""Runs a stage, and says in one line why where a signal ended it: `python -m quantmill.watch COMMAND...`.

Every rule's command runs under it (rules/common.smk). It is a process of its
own, and not a fork of the stage, so that it is there when the libraries are
loaded, holds no memory of the stage's, and leaves the stage a process as any
other: threads, Metal and CUDA do not outlive a fork. It starts in milliseconds.

Its exit code is the command's, 128 and the signal's number where one ended it.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from quantmill import recorder, signals
from quantmill.errors import QuantmillError


def main(command: list[str]) -> int:
    """Run `command` until it ends."""
    record = recorder.create()
    lifeline, _held = os.pipe()  # the other end is closed by the system when this process ends
    environment = os.environ | recorder.handed_over(record, lifeline)
    try:
        child = os.posix_spawnp(command[0], command, environment)
    except OSError as error:
        print(f"error: {command[0]}: cannot be run ({error.strerror})", file=sys.stderr)
        return 127
    _pass_on(child)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    left = recorder.read(record)
    if code >= 0:
        sys.stderr.write(left.printed)
        return code
    if -code != signal.SIGINT:
        _report(command, -code, left, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    return 128 - code


def explain(
    stage: str, number: int, left: recorder.Record, used: int, requested: str | None
) -> QuantmillError:
    """The one line on a stage that the signal `number` ended.

    `used` is the most memory that it used in bytes, `requested` what its job
    requested in MB, None where that is not known.
    """
    what, cure = signals.how(-number), signals.cure(-number)
    if left.doing:
        what += f" at {left.doing}"
    if number == signal.SIGILL:
        what += ", an instruction that this processor does not have"
    if number == signal.SIGKILL:
        what += f", most likely for memory: {_memory(used, requested)}"
        cure = "free some, allow it more, or use a larger machine"
    if number == signal.SIGSEGV and left.doing:
        cure = "leave that out, or report this line"
    if message := signals.last_words(left.printed) or left.heard:
        what += f" (last message: {message})"
    return QuantmillError(what, stage, cure)


def _memory(used: int, requested: str | None) -> str:
    """`it used 3.91 GiB, its job requested 2.10 GiB, and this machine has 4.00 GiB`."""
    from quantmill.machine import memory
    from quantmill.text import size

    there = memory()
    known = requested is not None and requested.isdecimal()
    job = f", its job requested {size(int(requested or 0) * 1e6)}" if known else ""
    return f"it used {size(used)}{job}, and {there.where} has {size(there.total)}"


def _report(command: list[str], number: int, left: recorder.Record, used: int) -> None:
    """Print the line on stderr, and add it to the stage's log after all that native code printed."""
    stage = _argument(command, "-m") or command[0]
    error = explain(stage.removeprefix("quantmill."), number, left, used, _argument(command, "--memory"))
    line = f"error: {error}\n"
    sys.stderr.write(line)
    if log := _argument(command, "--log"):
        with suppress(OSError), Path(log).open("a", encoding="utf-8") as file:
            file.write("".join(f"{printed}\n" for printed in left.printed.splitlines()) + line)


def _argument(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command[:-1] else None


def _pass_on(child: int) -> None:
    """Hand on to the child what asks this process to end. SIGINT it has too: a terminal sends it to all."""

    def kill(number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, kill)
    signal.signal(signal.SIGINT, lambda *_: None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
