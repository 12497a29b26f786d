"""How much of a file's divergence comes from its weights, and how much from the rounding of activations.

`python benchmarks/weights.py MODEL RESULTS --store STORE`, where RESULTS is the
model's folder from `quality.py`. Each preset and its size-targeted file is
written again as F16 of the same values (llama-quantize), and measured on the
same held-out chunks. With F16 weights, activations are not rounded to 8 bits.
What remains is the part that the choice of types can change.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from quality import PRESETS
from quantmill.files import read_json
from quantmill.measure import divergence
from quantmill.measure.score import load_chunks
from quantmill.progress import Log
from quantmill.spec import file_sha256
from quantmill.store import Store
from stages import THREADS, engine_digest
from tools import find_or_build

_RESAMPLES = 9999


def values_kld(
    file: Path, source: divergence.Model, chunks: NDArray[np.int32], tools: Path, store: Store, log: Log
) -> NDArray[np.float64]:
    """The mean divergence [chunks] of F16 of a file's values from the source."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain.gguf")
        command = [tools / "llama-quantize", "--allow-requantize", file, plain, "F16", str(THREADS)]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        identity = {"engine": source.identity["engine"], "model": file_sha256(plain)}
        made = divergence.Model(plain, identity)
        values, _ = divergence.measure(made, source, chunks, threads=THREADS, store=store, log=log)
    return np.asarray(values.kld.reshape(len(chunks), -1).mean(axis=1), np.float64)


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model", type=Path, help="the source, a GGUF")
    arguments.add_argument("results", type=Path, help="results/<model> of quality.py's folder")
    arguments.add_argument("--store", type=Path, required=True)
    args = arguments.parse_args()
    results, name = args.results, args.results.name
    tools = find_or_build(Path(__file__).parent / "build")
    store, log = Store(args.store), Log(args.store / "weights.log")
    settings = read_json(results / "bench" / "source" / "kld.json")
    chunks = load_chunks(results / "corpus" / "held-out.parquet", settings)
    facts: dict[str, Any] = read_json(results / "model.json")
    source = divergence.Model(args.model, {"engine": engine_digest(), "model": facts["sha256"]})
    print("| preset | file of the preset | fitted | ratio | as F16: preset | fitted | ratio (95 %) |")
    print("|---|---|---|---|---|---|---|")
    ratios = []
    for preset in PRESETS:
        files = [f"fit-{preset}", preset]
        klds = [read_json(results / "bench" / file / "kld.json")["kld"]["mean"] for file in files]
        fitted, plain = (
            values_kld(results / "gguf" / f"{name}-{file}.gguf", source, chunks, tools, store, log)
            for file in files
        )
        interval = bootstrap(
            (fitted, plain),
            lambda x, y, axis: x.mean(axis=axis) / y.mean(axis=axis),
            paired=True,
            n_resamples=_RESAMPLES,
            rng=np.random.default_rng(0),
        ).confidence_interval
        ratios.append(fitted.mean() / plain.mean())
        print(
            f"| {preset} | {klds[1]:.5f} | {klds[0]:.5f} | {klds[0] / klds[1]:.2f} | {plain.mean():.5f} "
            f"| {fitted.mean():.5f} | {ratios[-1]:.2f} ({interval.low:.2f} to {interval.high:.2f}) |",
            flush=True,
        )
    print(f"| mean | | | | | | {np.mean(ratios):.2f}, at most {max(ratios):.2f} |")


if __name__ == "__main__":
    main()
