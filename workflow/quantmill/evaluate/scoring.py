"""Run an untrusted program within limits and print its result as one line of JSON.

    python scoring.py < {"program", "seconds", "memory", "processes", "file_bytes"}

It stands alone, on the standard library: the sandbox hands its text to a Python
that sees nothing of quantmill. The program runs in a child; this process waits,
and with its end all that the child has started ends too, where it is the first
of its own process namespace.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import TypedDict

LIMITS = {errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.ENOMEM, errno.EMFILE}
MESSAGE = 300
EVERY = 0.005


class Work(TypedDict):
    """A program and its limits."""

    program: str
    seconds: float
    memory: int
    processes: int
    file_bytes: int


def verdict(error: BaseException) -> tuple[str, str]:
    """(class, message) of what a program raised."""
    kind = "error"
    if isinstance(error, SyntaxError):
        kind = "syntax"
    elif isinstance(error, AssertionError):
        kind = "wrong"
    elif (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno in LIMITS)
        or (isinstance(error, RuntimeError) and "start new thread" in str(error))
    ):
        kind = "limits"
    message = f"{type(error).__name__}: {error}".rstrip(": ")[:MESSAGE]
    return kind, message.encode(errors="backslashreplace").decode()  # half a surrogate pair is no text


def run(work: Work, out: int) -> None:
    """In the child: the limits, then the program; the verdict goes to the pipe `out`. Does not return."""
    for name, value in (
        (resource.RLIMIT_CPU, int(work["seconds"]) + 1),
        (resource.RLIMIT_AS, work["memory"]),
        (resource.RLIMIT_NPROC, work["processes"]),
        (resource.RLIMIT_FSIZE, work["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        most = resource.getrlimit(name)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(name, (value, value))
    own = os.getpid()
    os.setsid()  # a signal to its own group must stay inside
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    try:
        exec(compile(work["program"], "<answer>", "exec"), {"__name__": "answer"})
        result = "passed", ""
    except BaseException as error:  # SystemExit too: whoever leaves before the test has not passed it
        result = verdict(error)
    if os.getpid() == own:  # and not what the program forked
        os.write(out, json.dumps(result).encode())
    os._exit(0)


def stop(group: int) -> None:
    """Kill what is left of a group of processes."""
    with suppress(OSError):
        os.killpg(group, signal.SIGKILL)


def score(work: Work) -> tuple[str, str]:
    """(class, message): passed, wrong, syntax, error, timeout or limits."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    child = os.fork()
    if child == 0:
        os.close(reader)
        run(work, writer)
    os.close(writer)
    until = time.monotonic() + work["seconds"]
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > until:
            stop(child)
            os.waitpid(child, 0)
            return "timeout", f"not done in {work['seconds']:g} s"
        time.sleep(EVERY)
    stop(child)
    try:
        kind, message = json.loads(os.read(reader, 4096))
        return str(kind), str(message)
    except (ValueError, OSError):  # no verdict: the program took the process away
        code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return "timeout", "processor time"
    kind = "limits" if code in (-signal.SIGXFSZ, -signal.SIGKILL) else "error"
    return kind, f"signal {-code}" if code < 0 else f"left with exit code {code}"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program may send one
    print(json.dumps(score(json.load(sys.stdin))), flush=True)
    os._exit(0)
