"""A small tree of results as docs/files.md gives it, made up: what the card is written from."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantmill.files import write_json, write_table, write_text
from reports import sha

BITS = {
    "f32": 32.0,
    "f16": 16.0,
    "q8_0": 8.5,
    "q6_K": 6.5625,
    "q5_K": 5.5,
    "q5_0": 5.5,
    "q4_K": 4.5,
    "iq4_xs": 4.25,
    "q3_K": 3.4375,
    "iq3_xxs": 3.0625,
    "iq2_xxs": 2.0625,
}
SHAPES = {
    "attn_norm": (512,),
    "attn_q": (512, 512),
    "attn_k": (512, 128),
    "attn_v": (512, 128),
    "attn_output": (512, 512),
    "ffn_norm": (512,),
    "ffn_gate": (512, 1536),
    "ffn_up": (512, 1536),
    "ffn_down": (1536, 512),
}

#             main type, embeddings, more (attn_v and half of ffn_down), mean nll added, its sd over chunks
RECIPES: dict[str, tuple[str, str, str, float, float]] = {
    "Q8_0": ("q8_0", "q8_0", "q8_0", 0.0002, 0.002),
    "Q6_K": ("q6_K", "q8_0", "q6_K", 0.0008, 0.004),
    "Q5_K_M": ("q5_K", "q8_0", "q6_K", 0.0080, 0.006),
    "Q4_K_L": ("q4_K", "f16", "q8_0", 0.0420, 0.010),
    "Q4_K_M": ("q4_K", "q6_K", "q6_K", 0.0250, 0.012),
    "IQ2_XXS": ("iq2_xxs", "q5_K", "q3_K", 0.9000, 0.060),
}


def exactly(n: int, mean: float, sd: float, seed: str) -> list[float]:
    """n values of exactly this mean and sample sd."""
    draw = random.Random(seed)
    values = [draw.gauss(0, 1) for _ in range(n)]
    centre, scale = statistics.fmean(values), statistics.stdev(values)
    return [mean + sd * (value - centre) / scale for value in values]


def perplexity(nll: list[float], model: str) -> dict[str, Any]:
    value = math.exp(statistics.fmean(nll))
    return {
        "corpus": "held-out",
        "chunks": len(nll),
        "context": 512,
        "tokens": 255 * len(nll),
        "nll": nll,
        "perplexity": value,
        "error": 0.02 * value,
        "seconds": 3.5,
        "model_sha256": model,
    }


def kld(values: list[float], nll: list[float], base: list[float], model: str) -> dict[str, Any]:
    """Made up around the chunks' means."""
    mean, ratio = statistics.fmean(values), math.exp(statistics.fmean(nll) - statistics.fmean(base))
    spread = {"99.9%": 9 * mean, "max": 15 * mean, "median": 0.7 * mean, "min": 0.01 * mean}
    percents = ("0.1%", "1%", "5%", "10%", "25%", "75%", "90%", "95%", "99%")
    rest = dict.fromkeys(percents, mean)
    reference = {
        "threshold": 1e-5,
        "most_of_vocabulary": 0.0625,
        "samples": 64,
        "tokens": 779.4,
        "mass": 0.9928,
        "least_mass": 0.9,
        "gap": {"mean": 0.0001 * mean, "error": 0.0002 * mean, "predictions": 160, "kld": mean},
    }
    return {
        "corpus": "held-out",
        "chunks": len(values),
        "context": 512,
        "tokens": 255 * len(values),
        "seconds": 3.5,
        "model_sha256": model,
        "reference_sha256": sha("source"),
        "kld": {"mean": mean, "error": mean / 50} | spread | rest,
        "p_diff": {"mean": -mean / 8, "error": mean / 99, "rms": mean / 3, "rms_error": mean / 70}
        | spread
        | rest,
        "same_top": {"mean": 1 - min(0.9, mean), "error": mean / 30},
        "perplexity": {"value": math.exp(statistics.fmean(nll)), "error": 0.3},
        "perplexity_reference": {"value": math.exp(statistics.fmean(base)), "error": 0.3},
        "correlation": 0.99,
        "log_ratio": {"mean": math.log(ratio), "error": 0.005},
        "difference": {"value": 0.0, "error": 0.1},
        "ratio": {"value": ratio, "error": ratio / 200},
        "by_chunk": {"kld": values, "nll": nll, "nll_reference": base, "same_top": [0.9] * len(values)},
        "reference": reference,
    }


def speed(prompt: float, generate: float, model: str) -> dict[str, Any]:
    def half(tokens: int, mean: float) -> dict[str, Any]:
        return {"tokens": tokens, "mean": mean, "sd": mean / 100, "samples": [mean] * 5}

    machine = {"cpu": "Example CPU @ 2.00GHz", "cores": 2, "memory_bytes": 8 << 30}
    return {
        "prompt": half(512, prompt),
        "generate": half(128, generate),
        "threads": 2,
        "backend": "CPU",
        "machine": machine,
        "model_sha256": model,
    }


def corpus(name: str) -> dict[str, Any]:
    def source(source: str, chunks: int, requested: float, actual: float) -> dict[str, Any]:
        return {
            "name": source,
            "file": f"{source}.parquet",
            "sha256": sha(source),
            "column": "content",
            "rows_read": 1200,
            "rows_used": 300,
            "rows_broken": 3,
            "rows_duplicate": 7,
            "rows_empty": 1,
            "rows_joined": 0,
            "rows_cut": 0,
            "broken": [{"reason": "not UTF-8", "rows": 3, "first": 9}],
            "characters": 90_000,
            "tokens": 512 * chunks,
            "chunks": chunks,
            "share_wanted": requested,
            "share_got": actual,
        }

    return {
        "corpus": name,
        "seed": 1,
        "context": 512,
        "chunks": 40,
        "tokens": 512 * 40,
        "sources": [source("code", 20, 0.5, 0.5), source("prose", 20, 0.5, 0.5)],
        "warnings": ["prose: 3 of 1200 rows of prose.parquet are left out: 3 not UTF-8, such as row 9"],
    }


def tensors(recipe: tuple[str, str, str, float, float], layers: int) -> list[dict[str, Any]]:
    main, embeddings, more, _, _ = recipe
    rows = []

    def add(name: str, role: str, layer: int, shape: tuple[int, ...], type_: str, reason: str) -> None:
        bytes_ = int(math.prod(shape) * BITS[type_] / 8)
        rows.append(
            {
                "name": name,
                "role": role,
                "layer": layer,
                "shape": "x".join(map(str, shape)),
                "source_type": "f16",
                "type": type_,
                "bytes": bytes_,
                "reason": reason,
            }
        )

    add("token_embd.weight", "token_embd", -1, (512, 4096), embeddings, "rule 1: embeddings")
    add("output_norm.weight", "output_norm", -1, (512,), "f32", "never quantized")
    for layer in range(layers):
        for role, shape in SHAPES.items():
            name = f"blk.{layer}.{role}.weight"
            if len(shape) == 1:
                add(name, role, layer, shape, "f32", "never quantized")
            elif role == "attn_v" or (role == "ffn_down" and layer % 2 == 0):
                add(name, role, layer, shape, more, "the preset's own mixture")
            elif role == "attn_k" and main == "q4_K":
                add(name, role, layer, shape, "q5_0", "fallback from q4_K: width 512 is no multiple of 256")
            else:
                add(name, role, layer, shape, main, "the preset's own mixture")
    return rows


def checks(name: str, tensors: int) -> dict[str, Any]:
    return {
        "file": f"tiny-{name}.gguf",
        "sha256": sha(name),
        "tensors": tensors,
        "bytes": 1 << 20,
        "tokenizer": "lossless",
        "sampling": {"temp": 0.7, "top_k": 20},
        "template": {"system": "takes", "tools": "leaves out"},
        "answer": {"prompt": 14, "tokens": 16, "text": "Paris", "ended": True},
        "tried": "asked",
        "failures": [],
    }


def plan(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    parameters = sum(math.prod(map(int, row["shape"].split("x"))) for row in rows)
    tensor_bytes = sum(row["bytes"] for row in rows)
    by_type = [
        {
            "type": type_,
            "tensors": len(members),
            "bytes": sum(row["bytes"] for row in members),
            "parameters": sum(math.prod(map(int, row["shape"].split("x"))) for row in members),
            "roles": sorted({row["role"] for row in members}),
        }
        for type_ in {row["type"] for row in rows}
        if (members := [row for row in rows if row["type"] == type_])
    ]
    return {
        "recipe": name,
        "engine": "mainline",
        "base": name.replace("_L", "_M"),
        "file_type": 15,
        "imatrix": True,
        "tensors": len(rows),
        "parameters": parameters,
        "file_bytes": tensor_bytes + 4096,
        "tensor_bytes": tensor_bytes,
        "metadata_bytes": 4096,
        "bpw": 8 * (tensor_bytes + 4096) / parameters,
        "by_type": sorted(by_type, key=lambda one: (-one["bytes"], one["type"])),
        "bits": [],
        "fallbacks": [
            {"name": row["name"], "wanted": "q4_K", "type": row["type"]}
            for row in rows
            if row["reason"].startswith("fallback")
        ],
        "requantized": False,
        "source_types": {"f16": 7},
        "rules": 1,
        "by_role": [],
        "allocation": None,
        "warnings": [],
    }


def loss(nll_added: float) -> float:
    """The mean KL divergence of a file whose mean nll is so much higher."""
    return 0.003 + 1.5 * nll_added


def make(
    folder: Path,
    recipes: dict[str, tuple[str, str, str, float, float]] | None = None,
    layers: int = 4,
    n: int = 40,
) -> dict[str, Any]:
    """Write a tree of results to `folder`; returns the config of the card's spec."""
    recipes = RECIPES if recipes is None else recipes
    base = exactly(n, 2.9, 0.4, "source")
    rows = tensors(("f16", "f16", "f16", 0, 0), layers)
    manifest = [
        [
            row["name"],
            row["role"],
            row["layer"],
            *(row["shape"].split("x") + ["1"] * 4)[:4],
            row["type"],
            row["bytes"],
            sha(row["name"]),
        ]
        for row in rows
    ]
    source = sha("source")
    parameters = sum(math.prod(map(int, row["shape"].split("x"))) for row in rows)
    header = ["name", "role", "layer", "ne0", "ne1", "ne2", "ne3", "type", "bytes", "sha256"]
    write_table(folder / "manifest.tsv", header, manifest)
    write_json(
        folder / "model.json",
        {
            "name": "Tiny Test",
            "architecture": "llama",
            "layers": layers,
            "context_length": 2048,
            "embedding_length": 512,
            "experts": 0,
            "experts_used": 0,
            "parameters": parameters,
            "tensors": len(rows),
            "bytes": sum(row["bytes"] for row in rows) + 4096,
            "sha256": source,
            "types": {"f16": 7 * layers + 1, "f32": 2 * layers + 1},
            "quantized": False,
            "quantized_types": [],
            "tokenizer": "gpt2",
            "chat_template": "{{ messages }}",
            "licence": "apache-2.0",
            "metadata_bytes": 4096,
            "hyperparameters": {"block_count": layers, "embedding_length": 512},
        },
    )
    write_json(folder / "check.json", {"kind": "decoder", "words": "a language model", "warnings": []})
    for name in ("calibration", "held-out"):
        write_json(folder / "corpus" / f"{name}.json", corpus(name))
    write_json(
        folder / "imatrix.json",
        {
            "corpus": "calibration",
            "chunks": 40,
            "context": 512,
            "tokens": 20480,
            "seconds": 130.0,
            "entries": [
                {
                    "name": f"blk.{i}.attn_q.weight",
                    "role": "attn_q",
                    "layer": i,
                    "columns": 512,
                    "matrices": 1,
                    "count_min": 20480,
                    "count_max": 20480,
                    **dict.fromkeys(
                        ("sum", "mean", "sd", "min", "max", "active", "entropy", "z_over_1"), 1.0
                    ),
                    "cosine": None,
                }
                for i in range(layers)
            ],
            "missing": ["token_embd.weight"],
            "experts_under_floor": [],
            "floor": 32,
            "perplexity": {"perplexity": 17.25, "error": 0.31, "chunks": 12, "tokens": 3060},
            "warnings": [],
        },
    )
    write_json(folder / "bench" / "source" / "perplexity.json", perplexity(base, source))
    write_json(folder / "bench" / "source" / "kld.json", kld([0.0] * n, base, base, source))
    write_json(folder / "bench" / "source" / "speed.json", speed(400.0, 30.0, source))
    for name, recipe in recipes.items():
        rows = tensors(recipe, layers)
        described = plan(name, rows)
        columns = ["name", "role", "layer", "shape", "source_type", "type", "bytes", "reason"]
        write_table(folder / "plans" / f"{name}.tsv", columns, [[row[c] for c in columns] for row in rows])
        write_json(folder / "plans" / f"{name}.json", described)
        rule = f"engine: mainline\nbase: {described['base']}\nimatrix: optional\nrules:\n"
        write_text(folder / "recipes" / f"{name}.yaml", rule + f"- {{role: token_embd, type: {recipe[1]}}}\n")
        file = {
            "file": f"tiny-{name}.gguf",
            "bytes": described["file_bytes"],
            "sha256": sha(name),
            "tensors": len(rows),
        }
        write_json(folder / "gguf" / f"tiny-{name}.json", file)
        write_json(folder / "checks" / f"{name}.json", checks(name, len(rows)))
        added = exactly(n, recipe[3], recipe[4], name)
        nll = [a + b for a, b in zip(base, added, strict=True)]
        write_json(folder / "bench" / name / "perplexity.json", perplexity(nll, sha(name)))
        divergences = [abs(value) for value in exactly(n, loss(recipe[3]), recipe[4] / 9, f"kld {name}")]
        write_json(folder / "bench" / name / "kld.json", kld(divergences, nll, base, sha(name)))
        write_json(
            folder / "bench" / name / "speed.json",
            speed(4000 / described["bpw"], 600 / described["bpw"], sha(name)),
        )
    return {
        "model": "tiny",
        "recipes": list(recipes),
        "card": {
            "license": "apache-2.0",
            "base_model": "example/Tiny-Test",
            "language": ["en"],
            "tags": ["test"],
            "pipeline_tag": "text-generation",
            "about": "Made to test the card.",
        },
        "imatrix": True,
        "kld": False,
        "perplexity": True,
        "speed": True,
        "sensitivity": False,
        "checks": True,
        "fits": {},
        "include": ["imatrix", "recipes"],
        "source": {"file": "tiny-test.gguf", "from": "of the Python package tiny_models"},
        "toolchain": {"llama-cpp-python": "0.3.36", "quantmill": "0.1.0"},
    }


def round_by_gptq(
    folder: Path, config: dict[str, Any], ratios: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """The config, and the files, of a tree whose recipes named in `ratios` are rounded by gptq.

    `ratios` is, by recipe and domain, the divergence of the file over that of nearest. Chunks are of the
    domains `code` and `prose` by turns.
    """
    moments = {
        "corpus": "calibration",
        "chunks": 40,
        "context": 512,
        "model": sha("source"),
        "engine": sha("engine"),
        "inputs": [],
        "missing": [],
        "bytes": 9,
        "seconds": 3.0,
        "warnings": [],
    }
    write_json(folder / "moments.json", moments)
    for name, by_domain in ratios.items():
        edit(folder / "plans" / f"{name}.json", rounding="gptq")
        report = json.loads((folder / "bench" / name / "kld.json").read_text(encoding="utf-8"))
        draw = random.Random(name)
        values = [
            value / by_domain["prose" if number % 2 else "code"] * draw.uniform(0.95, 1.05)
            for number, value in enumerate(report["by_chunk"]["kld"])
        ]
        report["by_chunk"]["kld"] = values
        report["model_sha256"] = sha(f"{name} to nearest")
        write_json(folder / "nearest" / f"{name}.kld.json", report)
        facts = json.loads((folder / "gguf" / f"tiny-{name}.json").read_text(encoding="utf-8"))
        facts["sha256"] = sha(f"{name} to nearest")
        write_json(folder / "nearest" / "gguf" / f"tiny-{name}.json", facts)
    return config | {"kld": True, "rounding": dict.fromkeys(ratios, True)}


def edit(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | fields)


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A folder of results and the card's config."""
    return tmp_path, make(tmp_path)


@pytest.fixture
def kld_tree(tree: tuple[Path, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The same with the KL divergence among what was measured."""
    return tree[0], tree[1] | {"kld": True}


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Make a folder of results of these recipes."""

    def build(**options: Any) -> tuple[Path, dict[str, Any]]:
        return tmp_path, make(tmp_path, **options)

    return build


@pytest.fixture
def gptq_tree(tree: tuple[Path, dict[str, Any]]) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Make a folder of results in which recipes are rounded by gptq: `code` and `prose` by recipe."""

    def build(**ratios: dict[str, float]) -> tuple[Path, dict[str, Any]]:
        return tree[0], round_by_gptq(*tree, ratios)

    return build
