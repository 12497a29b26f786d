"""How a process ended: what its exit code means, its last line, and what helps against a signal."""

from __future__ import annotations

import re
import signal
from typing import Final

_REASON_MAX: Final = 300  # characters of a program's own words in an error line
_SHELL: Final = 128  # a shell's exit code, and our own, where signal N ended a child, is this and N

# Lines that say why native code gave up: ggml's assertions, then an exception that nobody caught.
_REASONS: Final = (re.compile(r"^\S+\.(c|cc|cpp|cu|cuh|h|hpp|m|mm):\d+: "), re.compile(r"^what\(\): "))
_FRAME: Final = re.compile(r"\[0x[0-9a-f]+\]$|^#\d+ ")  # of a backtrace
_BUILT_AT: Final = re.compile(r"^/\S*/(?=\S+:\d+: )")  # the folder that a source file was compiled in

_CURES: Final = {
    signal.SIGILL: "build the engine for this processor: make -B env",
    signal.SIGKILL: "give it more memory",
    signal.SIGABRT: "see whether llama.cpp's own tools run this model: if so, report this line; "
    "if not, take another file or leave this stage out",
    signal.SIGBUS: "a file that it read was cut short, or its disk is full or failing: check both",
    signal.SIGSEGV: "run it again; where it ends so again, report this line",
}
_AGAIN: Final = "run it again: finished work is in the store"


def how(code: int) -> str:
    """`ended by SIGKILL`, or `ended with code 3`, of the exit code of a child or a shell."""
    number = _signal(code)
    return f"ended by {number.name}" if number else f"ended with code {code}"


def cure(code: int) -> str:
    """What helps where a signal is behind the exit code."""
    number = _signal(code)
    return _CURES.get(number, _AGAIN) if number else _AGAIN


def last_words(output: str) -> str:
    """The line that gives the reason why a program ended, else its last one; empty where there is none."""
    stripped = (line.strip() for line in output.splitlines())
    lines = [line for line in stripped if line and not _FRAME.search(line)]
    reasons = (line for reason in _REASONS for line in lines if reason.search(line))
    line = _BUILT_AT.sub("", next(reasons, lines[-1] if lines else ""))
    return line if len(line) <= _REASON_MAX else f"{line[: _REASON_MAX - 3]}..."


def _signal(code: int) -> signal.Signals | None:
    """The signal behind an exit code; None where there is none, or one without a name."""
    try:
        return signal.Signals(-code if code < 0 else code - _SHELL)
    except ValueError:
        return None
