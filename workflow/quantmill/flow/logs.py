"""The errors and warnings in the logs of stages, repeated at the end of a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path


class Logs:
    """The logs of this run: those below the results that were written since it began."""

    def __init__(self, results: Path):
        self.results = results
        self.started = time.time()

    def repeat_errors(self) -> None:
        """Print the errors of stages again."""
        for line in self.lines("error"):
            print(line, file=sys.stderr)

    def repeat_warnings(self) -> None:
        """Print the warnings of stages again, with their logs."""
        for line, logs in self.lines("warning").items():
            more = f" and {len(logs) - 1} more" if len(logs) > 1 else ""
            print(f"{line} ({logs[0]}{more})", file=sys.stderr)

    def lines(self, kind: str) -> dict[str, list[Path]]:
        """The lines that begin with `kind`, each once, and the logs that have it."""
        logs: dict[str, list[Path]] = {}
        for log in sorted([*self.results.glob("*/logs/**/*.log"), *self.results.glob("logs/*.log")]):
            if log.stat().st_mtime >= self.started:
                for line in log.read_text("utf-8", errors="replace").splitlines():
                    if line.startswith(f"{kind}: "):
                        logs.setdefault(line, []).append(log)
        return logs
