"""What Snakemake costs: reading the workflow, a run with nothing to do, a dry run; and a verification."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from pairs import compare, run
from rows import FULL_SWEEP, SEVEN_TIERS, Bench, Row
from stages import ROOT, Tier

MODELS, RECIPES = 20, 30


def nothing(bench: Bench) -> Iterable[Row]:
    """Seven tiers of a finished model: everything is there."""
    folder = bench.work.path("nothing/config.yaml").parent
    _write_config(folder, {"tiny": bench.work.model}, SEVEN_TIERS)
    run(_snakemake(folder, "--cores", "all"))

    def once() -> float:
        done = run(_snakemake(folder, "--cores", "all"))
        if "Nothing to be done" not in done.output:
            sys.exit(f"{done.output}\nerror: the second run of the same config had work to do")
        return done.seconds

    yield _row("a run with nothing to do", [once() for _ in range(bench.repeat)], 5)


def dry(bench: Bench) -> Iterable[Row]:
    """A dry run in which every job of 20 models by 30 recipes is due."""
    folder = bench.work.path("dry/config.yaml").parent
    models = {f"model-{number}": folder / f"model-{number}.gguf" for number in range(MODELS)}
    for path in models.values():
        if not path.exists():
            shutil.copyfile(bench.work.model, path)
    tiers = [*FULL_SWEEP, *(Tier(f"{t.name}-out", t.base, "q6_K") for t in FULL_SWEEP[:5])]
    assert len(tiers) == RECIPES
    _write_config(folder, models, tiers)
    taken = []
    for _ in range(bench.repeat):
        done = run(_snakemake(folder, "--cores", "all", "--dry-run", "--quiet", "rules"))
        taken.append(done.seconds)
    yield _row(f"a dry run of {MODELS} models by {RECIPES} recipes", taken, 15)


def parse(bench: Bench) -> Iterable[Row]:
    """Reading the workflow for one model, beyond what Snakemake takes for an empty one."""
    folder = bench.work.path("nothing/config.yaml").parent
    _write_config(folder, {"tiny": bench.work.model}, SEVEN_TIERS)
    empty = folder / "Snakefile"
    empty.touch()
    taken = []
    for _ in range(bench.repeat):
        whole = run(_snakemake(folder, "--list-rules")).seconds
        start = run([sys.executable, "-m", "snakemake", "--snakefile", empty, "--list-rules"]).seconds
        taken.append(whole - start)
    yield _row("the workflow read, one model", taken, 1.5)


def verify(bench: Bench) -> Iterable[Row]:
    """A file made again from its lock and compared, against quantizing it; both as Snakemake notes them."""
    folder = bench.work.path("verify/config.yaml").parent
    name = "model"
    _write_config(folder, {name: bench.work.model}, [Tier("Q4_K_M", "Q4_K_M")])
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config |= {"bench": {}, "publish": {"verify": "all"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    results = folder / "results" / name

    def seconds(job: str) -> float:
        header, row = (results / "benchmarks" / f"{job}.tsv").read_text(encoding="utf-8").splitlines()[:2]
        return float(row.split("\t")[header.split("\t").index("s")])

    pairs = []
    for _ in range(bench.repeat):
        shutil.rmtree(folder / "results", ignore_errors=True)
        run(_snakemake(folder, "--cores", "all", f"results/{name}/verify.json"))
        pairs.append(({"seconds": seconds("verify")}, {"seconds": seconds("gguf/Q4_K_M")}))
    found = compare(pairs, "seconds")
    ratio = f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})"
    ours, theirs = f"{found.ours:.3g} s", f"{found.theirs:.3g} s (quantizing)"
    yield Row("verify of one file, Q4_K_M", ours, theirs, ratio, "≤ 1.2", found.ratio <= 1.2)


def _write_config(folder: Path, models: dict[str, Path], tiers: list[Tier]) -> None:
    """A config.yaml of the given models and tiers, with small corpora from the benchmark's own text."""
    folder.mkdir(parents=True, exist_ok=True)
    corpora = folder.parent / "corpus"
    for name in ("imatrix", "perplexity"):
        shutil.copyfile(corpora / f"{name}.txt", folder / f"{name}.txt")
    sources = {"calibration": "imatrix.txt", "held-out": "perplexity.txt"}
    recipes = [
        tier.name if not tier.large else {"name": tier.name, "template": "preset"} | tier.parameters
        for tier in tiers
    ]
    config: dict[str, Any] = {
        "models": {name: {"source": {"path": str(path)}} for name, path in models.items()},
        "corpora": {
            name: {"seed": 1, "sources": [{"name": "code", "path": path, "weight": 1.0}]}
            for name, path in sources.items()
        },
        "imatrix": {"corpus": "calibration", "chunks": 4, "context": 128},
        "recipes": recipes,
        "bench": {
            "perplexity": {"corpus": "held-out", "chunks": 4, "context": 128},
            "speed": {"prompt": 16, "generate": 4, "repetitions": 2},
        },
        "results": "results",
        "store": {"path": "results/.store", "max": "5 GiB"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def _snakemake(folder: Path, *arguments: str) -> list[str | Path]:
    command: list[str | Path] = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    return [*command, "--directory", folder, "--configfile", folder / "config.yaml", *arguments]


def _row(what: str, taken: list[float], most: float) -> Row:
    middle = median(taken)
    ours = f"{middle:.3g} s ({min(taken):.3g} to {max(taken):.3g})"
    return Row(what, ours, "", "", f"≤ {most:g} s", middle <= most)
