"""Timing in pairs: ours, theirs, ours, theirs, in one run on one machine.

What drifts (the clock of the processor, other work on the machine) hits both
sides of a pair alike, so that the median of the pairs' ratios is steadier than
the ratio of two medians taken one after the other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from quantmill.__main__ import ONE_BLAS_THREAD

HERE = Path(__file__).parent
Figures = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One finished process: wall clock in seconds, peak resident set in bytes, what it printed, and the bytes
    that it read and wrote by system calls.
    """

    seconds: float
    peak: int
    output: str
    read: int = 0
    written: int = 0


@dataclass(frozen=True)
class Comparison:
    """Medians of one figure on both sides, and of the ratio ours/theirs with its least and most."""

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float


def run(command: Sequence[str | Path], cwd: Path | None = None) -> Run:
    """Run a command to its end.

    The peak is `ru_maxrss` of the process and of the children that it waited
    for, whichever is largest. A command that fails ends the benchmark with its
    last lines.
    """
    environment = os.environ | {"PYTHONPATH": str(HERE.parent / "workflow"), "PYTHONNOUSERSITE": "1"}
    environment |= ONE_BLAS_THREAD
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report")
        done = subprocess.run(
            [sys.executable, "-I", "-S", HERE / "launch.py", report, *words],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        seconds, peak, code, read, written = (
            report.read_text(encoding="utf-8").split() if report.exists() else ("0", "0", "127", "0", "0")
        )
    if code != "0":
        tail = "\n".join(output.splitlines()[-15:])
        sys.exit(f"{' '.join(words)}\n{tail}\nerror: exit code {code}")
    return Run(float(seconds), int(peak), output, int(read), int(written))


def alternate(
    ours: Callable[[], Figures], theirs: Callable[[], Figures], repeat: int
) -> list[tuple[Figures, Figures]]:
    """`repeat` pairs of figures; which side goes first changes from pair to pair."""
    pairs = []
    for turn in range(repeat):
        if turn % 2 == 0:
            mine = ours()
            pairs.append((mine, theirs()))
        else:
            other = theirs()
            pairs.append((ours(), other))
    return pairs


def compare(pairs: Sequence[tuple[Figures, Figures]], figure: str) -> Comparison:
    """One figure of all pairs."""
    ratios = [ours[figure] / theirs[figure] for ours, theirs in pairs]
    return Comparison(
        median(ours[figure] for ours, _ in pairs),
        median(theirs[figure] for _, theirs in pairs),
        median(ratios),
        min(ratios),
        max(ratios),
    )
