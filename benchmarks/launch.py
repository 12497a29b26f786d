"""Run a command; write its wall clock (s), peak resident set (bytes) and exit code to a file, and the bytes
that it read and wrote by system calls (0 where the system does not tell).

A process of its own, and a small one: Linux keeps the peak of whoever starts a
program as the program's own (`exec` does not reset `ru_maxrss`), so that from a
large parent every figure would be at least the parent's.

    python -I -S launch.py REPORT COMMAND [ARGUMENT ...]
"""

import os
import sys
import time


def transferred(process: int) -> tuple[int, int]:
    """What an ended process that is not yet waited for has read and written, in bytes."""
    try:
        with open(f"/proc/{process}/io", encoding="utf-8") as file:  # noqa: PTH123 (pathlib is 2 MB more)
            counts = dict(line.split(": ") for line in file.read().splitlines())
    except OSError:
        return 0, 0
    return int(counts["rchar"]), int(counts["wchar"])


if __name__ == "__main__":
    report, command = sys.argv[1], sys.argv[2:]
    started = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    seconds = time.perf_counter() - started
    read, written = transferred(child)
    _, status, usage = os.wait4(child, 0)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with open(report, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(f"{seconds} {peak} {os.waitstatus_to_exitcode(status)} {read} {written}")
