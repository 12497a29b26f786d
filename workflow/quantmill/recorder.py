"""What a stage leaves behind for its watcher (`quantmill.watch`), should a signal end it.

An unnamed file that both have open. It begins with two notes, which the stage
writes through shared memory: what it is doing, and the last line of its native library
last. After them stands whatever native code prints: an assertion that failed, an
exception that nobody caught, a debugger's output. Without a watcher nothing is recorded.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from typing import Final, NamedTuple

DOING: Final = 0
HEARD: Final = 1

_VARIABLE: Final = "QUANTMILL_WATCHED"
_NOTE: Final = 1024  # bytes a note
_NOTES: Final = 2 * _NOTE

_memory: mmap.mmap | None = None


class Record(NamedTuple):
    """What a stage left: its current task, its library's last warning, its native code's output."""

    doing: str
    heard: str
    printed: str


def create() -> int:
    """A new record, for a child to inherit: its file descriptor."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("quantmill")
    else:
        import tempfile

        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    os.truncate(file, _NOTES)
    os.lseek(file, 0, os.SEEK_END)  # the place where all who inherit it print
    return file


def handed_over(file: int, lifeline: int) -> dict[str, str]:
    """The environment of a child that is to keep the record; it ends once `lifeline`, a pipe, is closed."""
    for descriptor in (file, lifeline):
        os.set_inheritable(descriptor, True)
    return {_VARIABLE: f"{file},{lifeline}"}


def attach() -> None:
    """Begin to keep the record where a watcher waits for it, and end when the watcher does.

    Python's own output goes where it went; what native code prints goes to the
    record. Children that this process starts know nothing of it.
    """
    global _memory
    given = os.environ.pop(_VARIABLE, "")
    if not given:
        return
    file, lifeline = map(int, given.split(","))
    _memory = mmap.mmap(file, _NOTES)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.flush()
        printed = stream.fileno()
        own = os.fdopen(os.dup(printed), "w", 1, encoding=stream.encoding, errors=stream.errors)
        setattr(sys, name, own)
        os.dup2(file, printed)
    os.close(file)
    os.set_inheritable(lifeline, False)

    import threading

    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def note(which: int, text: str) -> None:
    """Replace the note `DOING` or `HEARD`; a microsecond, so that it can be done for every row."""
    if _memory is not None:
        _memory[which * _NOTE : (which + 1) * _NOTE] = text.encode()[:_NOTE].ljust(_NOTE, b"\0")


def read(file: int) -> Record:
    """What was recorded."""
    with os.fdopen(os.dup(file), "rb") as record:
        record.seek(0)
        notes, printed = record.read(_NOTES), record.read()
    doing, heard = (
        notes[at : at + _NOTE].rstrip(b"\0").decode(errors="replace") for at in range(0, _NOTES, _NOTE)
    )
    return Record(doing, heard, printed.decode(errors="replace"))


def _end_with(lifeline: int) -> None:
    """Wait until the watcher is gone, whose end of the pipe the system closes; nobody then waits for this."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGKILL)
