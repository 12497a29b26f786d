"""Rounding with error feedback beside rounding to nearest: the same types and bytes, by domain.

Builds through snakemake, for each type, the file with all matrices of the layers at that type (embeddings and
output at q8_0), rounded by gptq or gptaq; the acceptance test makes the same to nearest. The text of the
moments holds the domains code and prose; `--foreign` names text of others. Prints a table in markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from quality import CORPORA, ratio
from quantmill.formats.corpus import CORPUS, domains
from stages import ROOT, THREADS

TYPES = ["q2_K", "q3_K", "iq4_xs", "q4_K", "q4_0", "q4_1", "iq4_nl", "q5_K", "q5_0", "q6_K"]


def config(args: argparse.Namespace) -> dict[str, Any]:
    """quantmill's config."""

    def sources(corpus: str) -> list[dict[str, Any]]:
        return [
            {"name": kind, "path": str(CORPORA / f"{corpus}-{kind}.parquet")} for kind in ("code", "prose")
        ]

    foreign = [{"name": name, "path": str(Path(path).resolve())} for name, path in args.foreign]
    recipes = [
        {"name": name, "base": name, "embeddings": "q8_0", "output": "q8_0", "rounding": args.rounding}
        for name in args.types
    ]
    return {
        "models": {args.name: {"source": {"path": str(args.model.resolve())}}},
        "corpora": {
            "calibration": {"sources": sources("calibration")},
            "held-out": {"sources": [*sources("held-out"), *foreign]},
        },
        "imatrix": {"corpus": "calibration", "chunks": args.calibration_chunks},
        "bench": {"kld": {"corpus": "held-out", "chunks": args.chunks}},
        "recipes": recipes,
        "store": {"path": "../store"},
    }


def table(results: Path, types: list[str]) -> str:
    """By type the ratio of the mean divergences, with error feedback to nearest, on each domain."""
    places = domains(CORPUS.read(results / "corpus" / "held-out.json"))
    names = list(dict.fromkeys(places))
    lines = [f"| type | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    found: dict[str, list[float]] = {name: [] for name in names}
    for kind in types:
        files = (results / "bench" / kind / "kld.json", results / "nearest" / f"{kind}.kld.json")
        ours, theirs = (json.loads(file.read_text("utf-8"))["by_chunk"]["kld"] for file in files)
        cells = []
        for name in names:
            at = [i for i, domain in enumerate(places[: len(ours)]) if domain == name]
            both = ({"by_chunk": {"kld": [side[i] for i in at]}} for side in (ours, theirs))
            value, low, high = ratio(*both)
            nearest = sum(theirs[i] for i in at) / len(at)
            found[name].append(value)
            cells.append(f"{nearest:.5f}, {value:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    means = [f"{sum(values) / len(values):.2f}, at most {max(values):.2f}" for values in found.values()]
    lines.append(f"| mean | {' | '.join(means)} |")
    return "\n".join(lines)


def main() -> None:
    """Build the files of one model and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="a GGUF")
    arguments.add_argument("--name", required=True, help="what to call it")
    arguments.add_argument("--rounding", choices=["gptq", "gptaq"], default="gptq")
    arguments.add_argument("--types", nargs="+", default=TYPES)
    arguments.add_argument("--chunks", type=int, default=40, help="held-out chunks")
    arguments.add_argument("--calibration-chunks", type=int, default=64)
    arguments.add_argument(
        "--foreign",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "FILE"),
        help="text of another domain",
    )
    arguments.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "build" / "rounding")
    args = arguments.parse_args()
    folder = args.folder / f"{args.name}-{args.calibration_chunks}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(config(args), indent=1), encoding="utf-8")
    command = ["snakemake", "-s", ROOT / "Snakefile", "--configfile", "config.yaml", "--cores", THREADS]
    subprocess.run([sys.executable, "-m", *map(str, command), "--quiet", "rules"], cwd=folder, check=True)
    print(table(folder / "results" / args.name, args.types))


if __name__ == "__main__":
    main()
