"""What a plan of a large model costs, from its header alone: render and plan, as the rules call them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from pairs import run
from rows import TEMPLATE, Bench, Row
from stages import ROOT, Workspace

sys.path.append(str(ROOT / "examples"))

import headers as shapes


def of_27b(bench: Bench) -> Iterable[Row]:
    """Qwen3.6-27B, 851 tensors."""
    yield _plan(bench, shapes.qwen35, "27B, 851 tensors", 3)


def of_2400b(bench: Bench) -> Iterable[Row]:
    """2.4 T parameters, each expert a tensor of its own."""
    yield _plan(bench, shapes.huge, "2.4 T, 100,314 tensors", 30)


def _plan(bench: Bench, make: Callable[[Path], Path], what: str, most: float) -> Row:
    """Q4_K_L with an imatrix: the base's mixture from the dry run, two rules over it."""
    work = bench.work
    model = make(work.path(f"plan/{make.__name__}.gguf"))
    there = Workspace(model, model.parent, work.tools)
    there.path("imatrix.json").write_text('{"chunks": 64}', encoding="utf-8")
    taken, peaks = [], []
    for _ in range(bench.repeat):
        planned = run(there.plan("Q4_K_L", TEMPLATE, {"base": "Q4_K_L"}))
        taken.append(planned.seconds)
        peaks.append(planned.peak)
    middle = median(taken)
    ours = f"{middle:.3g} s ({min(taken):.3g} to {max(taken):.3g}), {max(peaks) >> 20} MiB"
    return Row(f"render and plan a header: {what}", ours, "", "", f"≤ {most:g} s", middle <= most)
