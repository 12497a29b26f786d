"""What the stages up to the plan make of one small model: it changes only with their versions."""

import subprocess
import sys
from pathlib import Path

import pytest

from quantmill import spec
from quantmill.stages import VERSIONS

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "tests" / "data" / "tiny-moe.gguf"

# Stage -> (its version, sha256 of its outputs one after the other).
GOLDEN = {
    "model.manifest": (2, "698107e3503e7706c971ef53c6a652ed0fc054d1a4b6e1be5e408e9c84670bec"),
    "recipe.plan": (5, "9ee6ee0443e1c49eb287b70632607fe263556fc34c7a025760111172ff6f2ae6"),
}
PARAMETERS = {"base": "Q4_K_M", "embeddings": "q8_0", "output": "q5_K"}
IMATRIX = {"file": "tiny-moe-imatrix.gguf", "dataset": "calibration", "chunks": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digest of each stage's outputs."""
    folder = tmp_path_factory.mktemp("golden")
    stages: dict[str, tuple[dict, list[str], list[str]]] = {
        "model.manifest": ({}, ["--manifest", "m.tsv", "--facts", "m.json"], ["m.tsv", "m.json"]),
        "recipe.plan": (
            {"recipe": "R", "imatrix": IMATRIX, "parameters": PARAMETERS},
            [
                *("--template", str(ROOT / "recipes" / "preset.yaml.j2")),
                *("--recipe", "r.yaml", "--plan", "p.tsv", "--report", "p.json"),
            ],
            ["r.yaml", "p.tsv", "p.json"],
        ),
    }
    digests = {}
    for stage, (config, options, outputs) in stages.items():
        words = ["--spec", spec.make(stage, config, {}), "--model", str(MODEL), "--log", "log", *options]
        subprocess.run([sys.executable, "-m", f"quantmill.{stage}", *words], cwd=folder, check=True)
        digests[stage] = spec.digest("".join((folder / name).read_text("utf-8") for name in outputs))
    return digests


@pytest.mark.parametrize("stage", GOLDEN)
def test_the_output_changes_only_with_the_version(made: dict[str, str], stage: str) -> None:
    version, digest = GOLDEN[stage]
    assert (VERSIONS[stage], made[stage]) == (version, digest), (
        f"the output of {stage} changed: raise its version in stages.py, then note both here"
    )
