"""What the native stages write: it changes only with their versions.

Numbers that a processor may round otherwise are compared to a few digits; the
file is Q8_0, whose bytes depend on no compiler.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models import write_coarse
from quantmill import spec
from quantmill.engine.vocabulary import Vocabulary
from quantmill.files import write_json, writing
from quantmill.formats.chunks import Chunk, write_chunks
from quantmill.stages import VERSIONS

DATA = Path(__file__).parents[1] / "data"
MODEL = DATA / "tiny-llama.gguf"

GOLDEN: dict[str, tuple[int, Any]] = {
    "measure.imatrix": (
        1,
        {
            "chunks": 8,
            "context": 128,
            "corpus": "c",
            "entries": [
                14,
                {
                    "active": 1.0,
                    "columns": 256,
                    "cosine": None,
                    "count_max": 1024,
                    "count_min": 1024,
                    "entropy": 7.97,
                    "layer": 0,
                    "matrices": 1,
                    "max": 1.04,
                    "mean": 0.559,
                    "min": 0.291,
                    "name": "blk.0.attn_k.weight",
                    "role": "attn_k",
                    "sd": 0.118,
                    "sum": 143.0,
                    "z_over_1": 0.133,
                },
            ],
            "experts_under_floor": [],
            "floor": 640,
            "missing": [],
            "perplexity": {"chunks": 1, "error": 658.0, "perplexity": 1480.0, "tokens": 63},
            "tokens": 1024,
            "warnings": [
                1,
                "the source's perplexity on the calibration corpus is 1484: the "
                "corpus does not suit the model, or the source is damaged",
            ],
        },
    ),
    "measure.divergence": (
        1,
        {
            "by_chunk": {
                "kld": [8, 0.00553],
                "nll": [8, 7.1],
                "nll_reference": [8, 7.3],
                "same_top": [8, 0.968],
            },
            "chunks": 8,
            "context": 128,
            "corpus": "c",
            "correlation": 1.0,
            "difference": {"error": 67.6, "value": -334.0},
            "kld": {
                "0.1%": 0.00118,
                "1%": 0.002,
                "10%": 0.0034,
                "25%": 0.00432,
                "5%": 0.003,
                "75%": 0.00759,
                "90%": 0.0105,
                "95%": 0.0125,
                "99%": 0.0188,
                "99.9%": 0.029,
                "error": 0.000151,
                "max": 0.0372,
                "mean": 0.00645,
                "median": 0.0056,
                "min": 0.00108,
            },
            "log_ratio": {"error": 0.00882, "mean": -0.214},
            "model_sha256": "coarse",
            "p_diff": {
                "0.1%": -0.066,
                "1%": -0.0461,
                "10%": -0.000671,
                "5%": -0.0139,
                "90%": 0.00137,
                "95%": 0.00339,
                "99%": 0.0189,
                "99.9%": 0.0295,
                "error": 0.000403,
                "max": 0.0312,
                "mean": -0.00112,
                "min": -0.0696,
                "rms": 0.0091,
                "rms_error": 0.00103,
            },
            "perplexity": {"error": 227.0, "value": 1400.0},
            "perplexity_reference": {"error": 294.0, "value": 1730.0},
            "ratio": {"error": 0.00712, "value": 0.808},
            "reference": {
                "least_mass": 0.693,
                "mass": 0.971,
                "most_of_vocabulary": 0.0625,
                "threshold": 1e-05,
                "tokens": 128.0,
            },
            "reference_sha256": "d57875713556699f18c861fc8a2234ac8df5d3fddd86b4d86546d1329de1b99f",
            "same_top": {"error": 0.00849, "mean": 0.962},
            "tokens": 504,
        },
    ),
    "measure.perplexity": (
        1,
        {
            "chunks": 8,
            "context": 128,
            "corpus": "c",
            "error": 294.0,
            "model_sha256": "d57875713556699f18c861fc8a2234ac8df5d3fddd86b4d86546d1329de1b99f",
            "nll": [8, 7.3],
            "perplexity": 1730.0,
            "tokens": 504,
        },
    ),
    "measure.speed": (
        1,
        {
            "generate": {"tokens": 4},
            "model_sha256": "d57875713556699f18c861fc8a2234ac8df5d3fddd86b4d86546d1329de1b99f",
            "prompt": {"tokens": 32},
            "threads": 1,
        },
    ),
    "quantize.write": (
        4,
        {
            "bytes": 2850496,
            "file": "q.gguf",
            "sha256": "cf5728362f7bbe2c32018275a7e1b458ab2b6e4e8ca511d6c8f68bd0a1424a4e",
            "tensors": 21,
        },
    ),
}


def shape(value: Any) -> Any:
    """The keys of JSON, and its values to three digits; what time it took and lists of numbers left out."""
    if isinstance(value, dict):
        return {
            key: shape(entry)
            for key, entry in value.items()
            if key not in ("seconds", "samples", "machine", "backend")
        }
    if isinstance(value, list):
        return [len(value), shape(value[0])] if value else []
    return float(f"{value:.3g}") if isinstance(value, float) else value


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("golden")

    def stage(name: str, config: dict, *arguments: str | Path) -> None:
        made_from = {"model": spec.file_sha256(MODEL)}
        words = ["--spec", spec.make(name, config, made_from, engine="e"), "--model", MODEL, *arguments]
        subprocess.run(
            [sys.executable, "-m", f"quantmill.{name}", *words, "--log", "log"], cwd=folder, check=True
        )

    with Vocabulary(MODEL) as vocabulary, writing(folder / "c.parquet") as file:
        tokens = vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))[:1024].reshape(8, 128)
        write_chunks(file, [Chunk("text", row, []) for row in tokens])
    (folder / "r.yaml").write_text("base: Q8_0\n", encoding="utf-8")
    store = ("--store", "store")
    chunks = {"corpus": "c", "chunks": 8, "context": 128}
    stage("model.manifest", {}, "--manifest", "m.tsv", "--facts", "m.json")
    stage(
        "recipe.plan",
        {"recipe": "R", "imatrix": None},
        "--recipe",
        "r.yaml",
        "--plan",
        "p.tsv",
        "--report",
        "p.json",
    )
    stage(
        "quantize.write",
        {"imatrix": None},
        "--manifest",
        "m.tsv",
        "--plan",
        "p.tsv",
        "--report",
        "p.json",
        "--gguf",
        "q.gguf",
        "--facts",
        "q.json",
        *store,
    )
    stage(
        "measure.imatrix",
        chunks,
        "--corpus",
        "c.parquet",
        "--gguf",
        "i.gguf",
        "--dat",
        "i.dat",
        "--report",
        "i.json",
        *store,
    )
    write_coarse(MODEL, folder / "coarse.gguf")
    write_json(folder / "coarse.json", {"sha256": "coarse"})
    stage(
        "measure.divergence",
        chunks,
        "--model",
        "coarse.gguf",
        "--facts",
        "coarse.json",
        "--reference",
        MODEL,
        "--reference-facts",
        "m.json",
        "--corpus",
        "c.parquet",
        "--out",
        "kld.json",
        *store,
    )
    stage(
        "measure.perplexity",
        chunks,
        "--facts",
        "m.json",
        "--corpus",
        "c.parquet",
        "--out",
        "ppl.json",
        *store,
    )
    stage(
        "measure.speed",
        {"prompt": 32, "generate": 4, "repetitions": 2},
        "--facts",
        "m.json",
        "--out",
        "s.json",
    )
    read = {
        name: json.loads((folder / f"{name}.json").read_text("utf-8"))
        for name in ("q", "i", "kld", "ppl", "s")
    }
    speed = shape(read["s"])
    for rate in (speed["prompt"], speed["generate"]):
        assert rate.pop("mean") > 0 and rate.pop("sd") >= 0
    # what is near zero, or a matter of chance, is not the same on every processor
    gap = read["kld"]["reference"].pop("gap")
    assert gap.keys() == {"predictions", "kld", "mean", "error"}
    assert all(read["kld"]["p_diff"].pop(name) is not None for name in ("25%", "median", "75%"))
    return {
        "quantize.write": read["q"],
        "measure.imatrix": shape(read["i"]),
        "measure.speed": speed,
        "measure.divergence": shape(read["kld"]),
        "measure.perplexity": shape(read["ppl"]),
    }


@pytest.mark.parametrize("stage", GOLDEN)
def test_the_output_changes_only_with_the_version(made: dict[str, Any], stage: str) -> None:
    version, golden = GOLDEN[stage]
    assert (VERSIONS[stage], made[stage]) == (version, near(golden)), (
        f"the output of {stage} changed: raise its version in stages.py, then note both here"
    )


def near(value: Any) -> Any:
    """The same; its fractions may differ by what processors round differently, one in the third digit."""
    if isinstance(value, dict):
        return {key: near(one) for key, one in value.items()}
    if isinstance(value, list):
        return [near(one) for one in value]
    return pytest.approx(value, rel=1e-2) if isinstance(value, float) else value
