"""Progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from quantmill import text

if TYPE_CHECKING:
    from tqdm import tqdm

BYTES: Final = "bytes"
"""The unit of amounts that are shown as GiB, MiB or KiB."""

_LINE_EVERY_SECONDS: Final = 10.0
_BAR_EVERY_SECONDS: Final = 1.0
_BELIEF: Final = 0.03  # a kind's own rate counts as much as that of all once this share of it is done


class Log:
    """Lines for a log file, with `more` after what it has; they go to stderr where there is none, or its
    disk is full.
    """

    def __init__(self, path: Path | None = None, *, more: bool = False) -> None:
        self.path = path
        if path is not None and not more:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("", encoding="utf-8")

    def say(self, line: str) -> None:
        """Add one line."""
        if not self.keep(line):
            print(line, file=sys.stderr, flush=True)

    def keep(self, line: str) -> bool:
        """Add one line to the file alone; whether there is one that could be written."""
        if self.path is not None:
            with (
                suppress(OSError),
                self.path.open("a", encoding="utf-8", errors="backslashreplace") as file,
            ):
                file.write(line + "\n")
                file.flush()
                return True
        return False

    def warn(self, warnings: Iterable[str]) -> None:
        """Add a line for each."""
        for warning in warnings:
            self.say(f"warning: {warning}")

    @contextmanager
    def progress(
        self, what: str, total: float, unit: str, work: Sequence[Work] | None = None
    ) -> Iterator[Progress]:
        """Report the progress of `what` over `total` units while the block runs.

        `work`: that of each call of `add`, in their order, where equal amounts take unequal times.
        """
        bar = _bar(what, total) if sys.stderr.isatty() else None
        lines = self if bar is None or self.path is not None else None
        progress = Progress(lines, bar, what, total, unit, work)
        with bar or nullcontext(), progress.ticking():
            yield progress
        progress.line(final=True)


class Work(NamedTuple):
    """Work of a kind, in any measure by which equal amounts are expected to take equal times."""

    kind: str
    amount: float


class Remaining:
    """The seconds that work still takes, by what it took so far.

    Equal amounts of all kinds are expected to take equal times, until some of a kind is done: then its own
    rate counts. The times are those of the caller's clock.
    """

    def __init__(self, work: Iterable[Work], now: float) -> None:
        self.left: dict[str, float] = defaultdict(float)
        for kind, amount in work:
            self.left[kind] += amount
        self.done = 0.0
        self.seconds = 0.0
        self._of: dict[str, tuple[float, float]] = {}  # work done and its seconds
        self._last, self._longest = now, 0.0

    def add(self, part: Work, now: float) -> None:
        """Some work was done since the last call."""
        kind, work = part
        spent, self._last = now - self._last, now
        self._longest = max(self._longest, spent)
        self.done += work
        self.seconds += spent
        self.left[kind] = max(0.0, self.left[kind] - work)
        done, seconds = self._of.get(kind, (0.0, 0.0))
        self._of[kind] = done + work, seconds + spent

    def reuse(self, part: Work, now: float) -> None:
        """Some work need not be done; what passed since the last call is nobody's."""
        kind, work = part
        self._last = now
        self.left[kind] = max(0.0, self.left[kind] - work)

    def estimate(self, now: float) -> float | None:
        """The seconds left; None where nothing was done yet.

        While a unit is being computed they become fewer, by no more than the longest one took: then
        it takes longer than any before, and nobody knows how long.
        """
        if not self.done:
            return None
        rate = self.seconds / self.done
        total = sum(left * self._seconds_per_work(kind, left, rate) for kind, left in self.left.items())
        return max(0.0, total - min(now - self._last, self._longest))

    def _seconds_per_work(self, kind: str, left: float, rate: float) -> float:
        done, seconds = self._of.get(kind, (0.0, 0.0))
        weight = _BELIEF * (done + left)
        return (seconds + weight * rate) / (done + weight) if done else rate


class Progress:
    """One running report: a terminal bar, and a line in the log every ten seconds.

    Safe in several threads. The lines come while a unit is being computed, too.
    """

    def __init__(
        self,
        log: Log | None,
        bar: tqdm | None,
        what: str,
        total: float,
        unit: str,
        work: Sequence[Work] | None = None,
    ) -> None:
        self._log, self._bar, self._what, self._total, self._unit = log, bar, what, total, unit
        self._done = 0.0
        self._started = self._reported = self._shown = time.monotonic()
        self._work = iter(work) if work is not None else None
        self._remaining = Remaining([Work("", total)] if work is None else work, self._started)
        self._lock = threading.RLock()

    def add(self, amount: float) -> None:
        """`amount` more units are done, or a fraction of one."""
        with self._lock:
            self._done += amount
            work = Work("", amount) if self._work is None else next(self._work)
            self._remaining.add(work, time.monotonic())
            self._show()

    def reuse(self, amount: float) -> None:
        """`amount` more units are there from an earlier run: they tell nothing of the time of others."""
        with self._lock:
            self._done += amount
            self._remaining.reuse(Work("", amount), time.monotonic())
            self._show()

    def expect(self, total: float) -> None:
        """Correct the total, where it was an estimate."""
        with self._lock:
            self._remaining.left[""] += total - self._total
            self._total = total
            if self._bar is not None:
                self._bar.total = total

    def line(self, *, final: bool = False) -> None:
        """Write a plain line to the log: how much is done, how fast, and the remaining time."""
        with self._lock:
            self._reported = time.monotonic()
            if self._log is not None:
                self._log.say(self._text(final))

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Report while the block runs, beginning at once, however long a unit takes."""
        stop = threading.Event()
        every = _BAR_EVERY_SECONDS if self._bar is not None else _LINE_EVERY_SECONDS

        def tick() -> None:
            while not stop.wait(every):
                with self._lock:
                    self._show(at_once=True)

        self.line()
        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        try:
            yield
        finally:
            stop.set()
            ticker.join()

    def _show(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if self._bar is not None and (at_once or now - self._shown >= _BAR_EVERY_SECONDS / 10):
            self._shown = now
            self._bar.n = min(self._done, self._total)
            self._bar.set_description_str(self._text())
        if now - self._reported >= _LINE_EVERY_SECONDS:
            self.line()

    def _text(self, final: bool = False) -> str:
        now = time.monotonic()
        parts = [f"{self._what}: {amounts(self._done, self._total, self._unit)}"]
        remaining = self._remaining
        if remaining.done and remaining.seconds and self._work is None:
            parts.append(_rate(remaining.done / remaining.seconds, self._unit))
        left = remaining.estimate(now)
        if final:
            parts.append(f"in {text.clock(now - self._started)}")
        elif left is not None:
            parts.append(f"{text.clock(round(left))} left")
        elif now - self._started >= 1:
            parts.append(f"after {text.clock(now - self._started)}")
        return ", ".join(parts)


def amounts(done: float, total: float, unit: str) -> str:
    """`5.3 of 6.0 GiB`, `3.1 of 32 chunks`: what is done beside the total, both in one unit."""
    if abs(done - total) <= 1e-6 * total:  # a sum of fractions
        done = total
    if unit == BYTES:
        factor, name = text.unit_of(total)
        return f"{done / factor:.1f} of {total / factor:.1f} {name}"
    return f"{_number(done)} of {_number(total)} {unit}"


def _number(value: float) -> str:
    """At most one decimal, and none of what is whole."""
    return f"{value:,.1f}".removesuffix(".0")


def _rate(rate: float, unit: str) -> str:
    """`1.8 GiB/s`, `12 chunks/s`; the seconds of one where they are longer."""
    if unit == BYTES:
        factor, name = text.unit_of(rate)
        return f"{rate / factor:.1f} {name}/s"
    if rate < 1:
        return f"{1 / rate:.3g} s a {unit.removesuffix('s')}"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s"


def _bar(what: str, total: float) -> tqdm:
    """A bar on the terminal. The import takes 30 ms, which a short stage without one need not pay."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=what,
        bar_format="{desc} |{bar}| {percentage:3.0f} %",
        file=sys.stderr,
        leave=False,
        dynamic_ncols=True,
    )
