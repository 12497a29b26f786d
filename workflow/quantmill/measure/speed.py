"""Speed of a model, by llama-bench's method: prompt processing (pp) and text generation (tg)."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from quantmill import command
from quantmill.engine import library
from quantmill.engine.evaluator import Evaluator, Tokens
from quantmill.engine.placement import backend
from quantmill.formats import settings
from quantmill.formats.measurements import SPEED, Machine, Rate, Speed
from quantmill.formats.publication import model_sha256
from quantmill.measure.score import loaded
from quantmill.progress import Log, Progress

_BATCH = 2048


def prompt_run(model: Evaluator, tokens: Tokens) -> None:
    """Process a prompt from an empty memory; the logits of its last token alone are computed."""
    for start in range(0, len(tokens), _BATCH):
        part = tokens[start : start + _BATCH]
        model.decode(part, start, len(part) - 1)
    model.wait()


def generation_run(model: Evaluator, tokens: Tokens) -> None:
    """Decode tokens one by one from an empty memory, each only when the one before is done."""
    for position in range(len(tokens)):
        model.decode(tokens[position : position + 1], position)
        model.wait()


def rates(
    model: Evaluator,
    run: Callable[[Evaluator, Tokens], None],
    count: int,
    warm_up: int,
    repetitions: int,
    progress: Progress,
) -> Rate:
    """Tokens a second of `repetitions` runs over `count` random tokens, after one warm-up run.

    Random tokens and a cleared memory each time, as llama-bench does; mean and
    sample standard deviation are those of its `t/s` column.
    """
    random = np.random.default_rng(0)

    def tokens(n: int) -> Tokens:
        drawn = random.integers(0, model.vocab_size, n, dtype=np.int32)
        if model.bos is not None:
            drawn[0] = model.bos
        return drawn

    samples = []
    run(model, tokens(warm_up))
    for _ in range(repetitions):
        model.clear()
        drawn = tokens(count)
        start = time.perf_counter()
        run(model, drawn)
        samples.append(count / (time.perf_counter() - start))
        progress.add(1)
    spread = stdev(samples) if len(samples) > 1 else 0.0
    return {"tokens": count, "mean": fmean(samples), "sd": spread, "samples": samples}


def machine(load: float) -> Machine:
    """The machine's name, processor, cores available and memory in bytes; `load` is what it was before."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "host": platform.node(),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `measure.speed`."""
    config: settings.Speed = args.spec["config"]
    sha256 = model_sha256(args.facts)
    library.use(config.get("engine", "mainline"))
    prompt, generate, repetitions = config["prompt"], config["generate"], config["repetitions"]
    context = max(prompt, generate)
    load = os.getloadavg()[0]
    with (
        loaded(args.model, context=context, batch=min(_BATCH, context), threads=args.threads) as model,
        log.progress("speed", 2 * repetitions, "runs") as progress,
    ):
        pp = rates(model, prompt_run, prompt, prompt, repetitions, progress)
        model.clear()
        tg = rates(model, generation_run, generate, 1, repetitions, progress)
        placement = model.placement
    measured: Speed = {
        "prompt": pp,
        "generate": tg,
        "threads": args.threads,
        "backend": backend(),
        "machine": machine(load),
        "model_sha256": sha256,
        **library.marked(),
    }
    if placement is not None:
        measured["devices"] = [placement]
    SPEED.write(args.out, measured)
    for name, rate in ((f"pp{prompt}", pp), (f"tg{generate}", tg)):
        log.say(f"{name}: {rate['mean']:.2f} +/- {rate['sd']:.2f} tokens/s")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, evaluates=True)
    arguments.add_argument("--model", type=Path, required=True, help="the GGUF to measure")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--out", type=Path, required=True, help="speed.json")
    command.run(arguments, main)
