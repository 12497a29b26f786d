"""What importing and allocating make of one small model: it changes only with their versions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budget_data import DATA
from quantmill import spec
from quantmill.stages import VERSIONS

# Stage -> (its version, sha256 of its outputs one after the other).
GOLDEN = {
    "budget.imported": (2, "244466b4b06dc8ed3c114a44ae272c8a38f88ebf53c123fa153b8ce8d51823eb"),
    "budget.reach": (1, "39fa5bc6d9d329993c7728a5839737a44ce03f82560f285ff6fa646ec0aec3d5"),
    "budget.allocate": (3, "29452384071f1572140612baf936efb80e146303598af015733cd2d745e3d3d3"),
}
RESULTS = """QTYPE,{names}
q2_K,{values}
q4_K,{finer}
"""
CURVE = """QTYPE,group0
bf16,0
q2_K,0.2
q3_K,0.07
q4_K,0.02
q5_K,0.008
q6_K,0.002
q8_0,0.001
"""


@pytest.fixture
def made(tmp_path: Path, config: Callable[..., dict[str, Any]]) -> dict[str, str]:
    """The digest of each stage's outputs."""
    names = [
        f"blk.{layer}.{role}.weight"
        for layer in range(2)
        for role in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    ]
    values = [round(0.001 * (1 + number * 7 % 11), 3) for number in range(len(names))]
    values[3] = 404.0
    (tmp_path / "results.csv").write_text(
        RESULTS.format(
            names=",".join(names),
            values=",".join(map(str, values)),
            finer=",".join(str(value if value == 404 else round(value / 8, 6)) for value in values),
        ),
        encoding="utf-8",
    )
    (tmp_path / "curve.csv").write_text(CURVE, encoding="utf-8")
    fields = {"pin": [{"role": "token_embd", "type": "q6_K"}], "at_least": {"attn_v": "q5_K"}}
    stages: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
        "budget.imported": (
            {},
            ["--results", "results.csv", "--curve", "curve.csv", "--out", "s.tsv", "--report", "s.json"],
            ["s.tsv", "s.json"],
        ),
        "budget.reach": (
            config({"bpw": 4.5}, measured=["q3_K", "q4_K", "q6_K"], **fields),
            ["--out", "reach.json"],
            ["reach.json"],
        ),
        "budget.allocate": (
            config({"bpw": 4.5}, **fields),
            ["--sensitivity", "s.tsv", "--out", "r.yaml", "--report", "r.json"],
            ["r.yaml", "r.json"],
        ),
    }
    digests = {}
    for stage, (settings, options, outputs) in stages.items():
        model = DATA / "tiny-llama.gguf"
        words = ["--spec", spec.make(stage, settings, {}), "--model", str(model), "--log", "log", *options]
        module = {"budget.imported": "sensitivity.imported", "budget.reach": "budget.feasibility"}.get(
            stage, stage
        )
        subprocess.run([sys.executable, "-m", f"quantmill.{module}", *words], cwd=tmp_path, check=True)
        digests[stage] = spec.digest("".join((tmp_path / name).read_text("utf-8") for name in outputs))
    return digests


def test_the_output_changes_only_with_the_version(made: dict[str, str]) -> None:
    result = {stage: (VERSIONS[stage], digest) for stage, digest in made.items()}
    assert result == GOLDEN, "an output changed: raise its version in stages.py, then note both here"
