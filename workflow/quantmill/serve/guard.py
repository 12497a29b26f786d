"""Runs a command that must not outlive whoever started it: it ends when standard input does.

The starter holds the other end of that pipe. However the starter ends, killed
outright among them, the system closes the pipe; the guard, in a session of its
own that no signal to the starter reaches, then ends the command, by force where
it must. Its exit code is the command's, 128 and the signal's number where one
ended it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

_GRACE_SECONDS = 3.0
_LOOK_EVERY_SECONDS = 0.1


def main(command: list[str]) -> int:
    """Run `command` until it ends or standard input does."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: _end(child))
    while child.poll() is None:
        held, _, _ = select.select([sys.stdin], [], [], _LOOK_EVERY_SECONDS)
        if held and not os.read(sys.stdin.fileno(), 1):
            _end(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
