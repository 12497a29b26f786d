"""A checkout in a folder of its own: the workflow, a tiny model, texts, a config; and runs in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PLUGIN = Path(__file__).parent / "staleness"


def text(rows: int, seed: int) -> str:
    """Paragraphs of plain text, no two the same."""
    words = (ROOT / "LICENSE").read_text("utf-8").split()
    starts = (seed * 400 + row * 7 for row in range(rows))
    return "\n\n".join(" ".join(words[start : start + 40]) for start in starts)


CONFIG: dict[str, Any] = {
    "models": {
        "tiny": {"source": {"path": "tiny-llama.gguf"}, "card": {"license": "mit", "about": "A test."}}
    },
    "corpora": {
        "calibration": {
            "seed": 1,
            "sources": [
                {"name": "one", "path": "one.txt", "weight": 0.5},
                {"name": "two", "path": "two.txt", "weight": 0.5},
            ],
        },
        "tuning": {"seed": 1, "sources": [{"name": "four", "path": "four.txt"}]},
        "held-out": {"seed": 1, "sources": [{"name": "three", "path": "three.txt"}]},
    },
    "imatrix": {"corpus": "calibration", "chunks": 4, "context": 128},
    "sensitivity": {
        "corpus": "tuning",
        "chunks": 2,
        "context": 128,
        "minutes": 60,
        "types": ["q4_K", "q8_0"],
    },
    "recipes": [
        "Q8_0",
        {"name": "mix", "template": "preset", "base": "Q4_K_M", "embeddings": "q8_0", "output": "q6_K"},
    ],
    "bench": {
        "kld": {"corpus": "held-out", "chunks": 3, "context": 128},
        "perplexity": {"corpus": "held-out", "chunks": 2, "context": 128},
        "speed": {"prompt": 16, "generate": 4, "repetitions": 2},
    },
}


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))


def _at_start() -> dict[str, str]:
    """The variables that an interpreter reads when it starts."""
    names = ("PYTHON", "LC_", "LANG")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


@cache
def _zygote_s() -> dict[str, str]:
    """Those with which the process was started that runs Snakemake."""
    _zygote()
    return _at_start()


@cache
def _zygote() -> subprocess.Popen[str]:
    """The process that runs Snakemake for this one. It ends with it."""
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("zygote.py")],
        env=os.environ | {"PYTHONPATH": _python_path()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class Checkout:
    """A checkout in `folder`, in which Snakemake is run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def build(cls, folder: Path) -> Checkout:
        """Copy the workflow to `folder`, with a tiny model, texts and a config beside it."""
        for name in ("workflow", "recipes", "envs"):  # with their bytecode, which is soon needed
            shutil.copytree(ROOT / name, folder / name)
        for name in ("Snakefile", "pyproject.toml"):
            shutil.copy2(ROOT / name, folder)
        (folder / "profiles").symlink_to((ROOT / "profiles").readlink())
        shutil.copy2(ROOT / "tests" / "data" / "tiny-llama.gguf", folder)
        for seed, name in enumerate(("one", "two", "three", "four")):
            (folder / f"{name}.txt").write_text(text(60, seed), encoding="utf-8")
        checkout = cls(folder)
        checkout.configure(lambda config: None)
        return checkout

    def copy(self, folder: Path) -> Checkout:
        """The same checkout elsewhere, files' times kept."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Checkout(folder)

    def configure(self, change: Callable[[dict[str, Any]], Any], name: str = "config.yaml") -> None:
        """Write the config with a change made to it."""
        config = json.loads(json.dumps(CONFIG))
        change(config)
        (self.folder / name).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace text in a file; it must be there."""
        path = self.folder / file
        assert old in path.read_text("utf-8")
        path.write_text(path.read_text("utf-8").replace(old, new), encoding="utf-8")

    def raise_version(self, stage: str) -> None:
        """Give the output of a stage another version."""
        path = self.folder / "workflow" / "quantmill" / "stages.py"
        text, times = re.subn(
            rf'("{re.escape(stage)}",\n\s+version=)\d+', r"\g<1>99", path.read_text("utf-8")
        )
        assert times == 1
        path.write_text(text, encoding="utf-8")

    def snakemake(self, *arguments: str, cores: int | None = 1) -> subprocess.CompletedProcess[str]:
        """Run Snakemake, whatever comes of it."""
        given = [*arguments, *([f"--cores={cores}"] if cores else [])]
        environment = os.environ | {"JOBS": str(self.folder / "jobs.jsonl"), "PYTHONPATH": _python_path()}
        if _at_start() != _zygote_s():
            command = [sys.executable, "-m", "snakemake", *given]
            return subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
            )
        with TemporaryDirectory() as outputs:
            out, err = Path(outputs) / "stdout", Path(outputs) / "stderr"
            request = {"arguments": given, "folder": str(self.folder), "environment": environment}
            zygote = _zygote()
            assert zygote.stdin is not None and zygote.stdout is not None
            zygote.stdin.write(json.dumps(request | {"stdout": str(out), "stderr": str(err)}) + "\n")
            zygote.stdin.flush()
            code = int(zygote.stdout.readline())
            texts = out.read_text("utf-8"), err.read_text("utf-8")
        return subprocess.CompletedProcess(["snakemake", *given], code, *texts)

    def run(self, *arguments: str, cores: int | None = 1) -> subprocess.CompletedProcess[str]:
        """Run Snakemake to a good end."""
        done = self.snakemake(*arguments, cores=cores)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def due(self, *arguments: str, cores: int = 1) -> set[str]:
        """The jobs that a dry run lists, as `rule name` with the last wildcard; target rules left out."""
        jobs = self.folder / "jobs.jsonl"
        jobs.unlink(missing_ok=True)
        self.run("-n", "--logger=jobs", *arguments, cores=cores)
        outcome = [json.loads(line) for line in jobs.read_text("utf-8").splitlines()] if jobs.exists() else []
        return {
            " ".join([job["rule"], *list(job["wildcards"].values())[1:]])
            for job in outcome
            if job["wildcards"]
        }

    def due_after(self, change: Callable[[Checkout], None], folder: Path) -> set[str]:
        """The jobs that a change makes due, in a copy of the checkout in `folder`."""
        checkout = self.copy(folder)
        change(checkout)
        return checkout.due()

    def result(self, name: str) -> Path:
        """A result of the model."""
        return self.folder / "results" / "tiny" / name

    def made(self, results: str = "results") -> set[Path]:
        """The files below a model's results; logs, benchmarks and the store left out."""
        skipped = {"logs", "benchmarks", ".store", ".specs"}
        files = (path for path in (self.folder / results).rglob("*") if path.is_file())
        return {path for path in files if not skipped & set(path.relative_to(self.folder / results).parts)}
