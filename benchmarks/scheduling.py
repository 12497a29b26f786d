"""What Snakemake costs: reading the workflow, a run with nothing to do, a dry run; and a verification."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from pairs import Figures, compare, run
from rows import FULL_SWEEP, SEVEN_TIERS, Bench, Row
from stages import ROOT, Tier

sys.path.append(str(ROOT / "tests"))
from cluster import slurm

MODELS, RECIPES = 20, 30
SHARDS, SHARED_CHUNKS = 8, 64  # a unit each


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


def shards(bench: Bench) -> Iterable[Row]:
    """An importance matrix by eight jobs on two nodes of a core each, against one job on such a node.

    The seconds are those of evaluating units: of one job all, of the shards those of the node that had most.
    """
    what = f"{SHARDS} shards of an importance matrix on two nodes: their units"
    plugin = importlib.util.find_spec("snakemake_executor_plugin_slurm")
    missing = slurm.why_not() or (None if plugin else "no plugin of Snakemake for Slurm (make cluster)")
    if missing is not None:
        yield Row(what, f"left out: {missing}", "", "", "≤ 1.1", None)
        return
    folder, name = bench.work.path("shards/config.yaml").parent, "model"
    _write_config(folder, {name: bench.work.model}, [Tier("Q8_0", "Q8_0")])
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["imatrix"]["chunks"] = SHARED_CHUNKS
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    profile = ("--profile", str(ROOT / "profiles" / "slurm"), "--max-threads", "1", "--latency-wait", "5")

    def once(cluster: slurm.Cluster, number: int) -> Figures:
        shutil.rmtree(folder / "results", ignore_errors=True)
        rule = "rule_shard_imatrix" if number > 1 else "rule_measure_imatrix"
        before = _jobs(cluster, rule)
        run(_snakemake(folder, *profile, "imatrices", "--config", f"shards={number}"))
        jobs = [job for key, job in _jobs(cluster, rule).items() if key not in before]
        if len(jobs) != number:
            sys.exit(f"error: {len(jobs)} jobs for {number}: some ran twice, which is not measured")
        most = max(Counter(job["NodeList"] for job in jobs).values())
        report = json.loads((folder / "results" / name / "imatrix.json").read_text(encoding="utf-8"))
        ends = [datetime.fromisoformat(job["EndTime"]) for job in jobs]
        whole = max(ends) - min(datetime.fromisoformat(job["StartTime"]) for job in jobs)
        return {"units": report["seconds"] * most / number, "whole": whole.total_seconds()}

    pairs = []
    with slurm.running(cores=1) as cluster:
        for _ in range(bench.repeat):
            ours, alone = once(cluster, SHARDS), once(cluster, 1)
            pairs.append((ours, {figure: seconds / 2 for figure, seconds in alone.items()}))
    found, whole = compare(pairs, "units"), compare(pairs, "whole")
    ratio = f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})"
    theirs = f"{found.theirs:.3g} s (half of one job's)"
    checked = f"with the starts of the jobs {whole.ours:.3g} s, and {whole.theirs:.3g} s"
    yield Row(what, f"{found.ours:.3g} s", theirs, ratio, "≤ 1.1", found.ratio <= 1.1, checked)


def _jobs(cluster: slurm.Cluster, rule: str) -> dict[str, dict[str, str]]:
    """What Slurm knows of the jobs of a rule, by their numbers."""
    lines = cluster.output("scontrol", "-o", "show", "job").splitlines()
    jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
    return {job["JobId"]: job for job in jobs if job.get("Comment", "").startswith(rule)}


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
