"""Progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

_LINE_EVERY_SECONDS = 10.0


class Log:
    """Lines for a log file; they go to stderr where there is none."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")

    def say(self, line: str) -> None:
        """Add one line."""
        if self.path is None:
            print(line, file=sys.stderr, flush=True)
        else:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def warn(self, warnings: Iterable[str]) -> None:
        """Add a line for each."""
        for warning in warnings:
            self.say(f"warning: {warning}")

    @contextmanager
    def progress(self, what: str, total: float, unit: str) -> Iterator[Progress]:
        """Report the progress of `what` over `total` units while the block runs."""
        bar = _bar(what, total, unit) if sys.stderr.isatty() else None
        progress = Progress(self, bar, what, total, unit)
        with bar or nullcontext():
            yield progress
        progress.line(final=True)


class Progress:
    """One running report: a terminal bar, and a line in the log every ten seconds."""

    def __init__(self, log: Log, bar: tqdm | None, what: str, total: float, unit: str) -> None:
        self._log, self._bar, self._what, self._total, self._unit = log, bar, what, total, unit
        self._done = 0.0
        self._started = self._reported = time.monotonic()

    def add(self, amount: float) -> None:
        """`amount` more units are done."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
        if time.monotonic() - self._reported >= _LINE_EVERY_SECONDS:
            self.line()

    def expect(self, total: float) -> None:
        """Correct the total, where it was an estimate."""
        self._total = total
        if self._bar is not None:
            self._bar.total = total

    def line(self, *, final: bool = False) -> None:
        """Write a plain line with the rate and the remaining time to the log."""
        self._reported = time.monotonic()
        seconds = self._reported - self._started
        rate = self._done / seconds if seconds > 0 else 0.0
        left = (self._total - self._done) / rate if rate > 0 else float("inf")
        rest = f"in {seconds:.1f} s" if final else f"{left:.0f} s left"
        self._log.say(
            f"{self._what}: {self._done:g} of {self._total:g} {self._unit}, {rate:.4g} {self._unit}/s, {rest}"
        )


def _bar(what: str, total: float, unit: str) -> tqdm:
    """A bar on the terminal. The import takes 30 ms, which a short stage without one need not pay."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=total > 100_000,
        file=sys.stderr,
        leave=False,
        dynamic_ncols=True,
    )
