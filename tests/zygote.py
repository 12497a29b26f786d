"""Runs Snakemake many times without importing it each time: `python tests/zygote.py`.

Reads a line of JSON for each run (arguments, folder, environment, files for its output), forks a process
that does what `python -m snakemake` does, and answers with its exit code. Importing Snakemake takes two
seconds of a dry run's three.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def serve() -> list[str] | None:
    """Fork for each request until there are no more: None in this process, the arguments in a fork."""
    while line := sys.stdin.readline():
        request: dict[str, Any] = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environment"])
            for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
                descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
                os.dup2(descriptor, number)
                os.close(descriptor)
            sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
            return list(request["arguments"])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()
    return None


if __name__ == "__main__":
    from snakemake.cli import main

    arguments = serve()
    if arguments is not None:
        sys.argv = [sys.argv[0], *arguments]
        main(arguments)
