"""Stages with all, with half and with none of the layers on a device of ggml's RPC server on this machine.

    python benchmarks/offload.py --model x-F16.gguf --chunks 8

The device computes with the same kernels, behind buffers that are not this process's memory. What differs
between the columns is what offloading does to a result, and what it costs is the way there and back.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pairs import run
from quantmill import offload
from quantmill.formats.imatrix import read_gguf
from quantmill.formats.sensitivity import read_sensitivity
from quantmill.model.header import read_source
from stages import THREADS, Command, Workspace, make_corpora


@contextmanager
def device() -> Iterator[str]:
    """The address of a server, while the block runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "quantmill.engine.rpc", "--port", str(port), "--threads", str(THREADS)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def measured(work: Workspace, chunks: int, problems: int) -> dict[str, tuple[Any, float]]:
    """By stage its result and seconds."""
    commands: dict[str, Command] = {
        "imatrix": work.imatrix(chunks),
        "divergence of the source from itself": work.divergence(chunks),
        "perplexity": work.perplexity(chunks),
        "probes": work.sensitivity(2, 0.1),
        "speed": work.speed(128, 16, 2),
        "HumanEval": work.humaneval(problems, 64),
    }
    results = {}
    for stage, command in commands.items():
        if stage == "perplexity":
            work.empty_store()  # the divergence has left it there
        seconds = run([*command, "--name", "model"]).seconds
        results[stage] = (_result(work, stage), seconds)
    return results


def _result(work: Workspace, stage: str) -> Any:
    def report(name: str) -> Any:
        return json.loads(work.path(name).read_text("utf-8"))

    match stage:
        case "imatrix":
            return read_gguf(work.path("imatrix.gguf")).entries
        case "perplexity":
            return report("perplexity.json")["perplexity"]
        case "probes":
            rows = read_sensitivity(work.path("sensitivity.tsv"))
            return {(row.name, row.type): row.kld for row in rows if row.how == "measured"}
        case "speed":
            return report("speed.json")["prompt"]["mean"], report("speed.json")["generate"]["mean"]
        case "HumanEval":
            return [
                json.loads(line)["answer"] for line in work.path("humaneval.jsonl").open(encoding="utf-8")
            ]
    return report("kld-source.json")["kld"]["max"]


def difference(stage: str, here: Any, there: Any) -> str:
    """How a result differs from the CPU's, in words."""
    import numpy as np

    match stage:
        case "imatrix":
            worst = max(
                float(
                    np.max(abs(there[name].in_sum2 - here[name].in_sum2) / (abs(here[name].in_sum2) + 1e-30))
                )
                for name in here
            )
            return f"{worst:.1e} relative, of the sums"
        case "perplexity":
            return f"{abs(there / here - 1):.1e} relative"
        case "probes":
            both = here.keys() & there.keys()
            worst = max(abs(there[key] - here[key]) / abs(here[key]) for key in both)
            return f"{worst:.1e} relative, of {len(both)}"
        case "speed":
            return f"pp {there[0]:.0f}, tg {there[1]:.1f} tokens/s; CPU {here[0]:.0f}, {here[1]:.1f}"
        case "HumanEval":
            return f"{sum(a != b for a, b in zip(here, there, strict=True))} of {len(here)} answers differ"
    return f"{there:.1e} at most; CPU {here:.1e}"


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="a GGUF")
    arguments.add_argument("--chunks", type=int, default=8, help="of 512 tokens")
    arguments.add_argument("--problems", type=int, default=4, help="of HumanEval")
    args = arguments.parse_args()
    layers = read_source(args.model).layers + 1
    with tempfile.TemporaryDirectory() as folder, device() as endpoint:
        counts = {"imatrix": args.chunks, "perplexity": args.chunks, "tuning": 2}
        corpora = make_corpora(args.model, Path(folder, "corpora"), counts)
        columns = {}
        wanted = {"CPU": None, "all layers": "all", f"{layers // 2} of {layers} layers": layers // 2}
        for name, count in wanted.items():
            settings = {} if count is None else {"model": {"rpc": [endpoint], "gpu_layers": count}}
            os.environ[offload.VARIABLE] = json.dumps(settings)
            work = Workspace(args.model.resolve(), Path(folder, name.replace(" ", "-")), Path(), corpora)
            run(work.manifest())
            columns[name] = measured(work, args.chunks, args.problems)
    print(f"| stage | {' | '.join(columns)} |")
    print("|---|" + "---|" * len(columns))
    for stage, (here, seconds) in columns["CPU"].items():
        cells = [f"{seconds:.1f} s"]
        cells += [
            f"{theirs:.1f} s; {difference(stage, here, there)}"
            for name in list(columns)[1:]
            for there, theirs in [columns[name][stage]]
        ]
        print(f"| {stage} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
