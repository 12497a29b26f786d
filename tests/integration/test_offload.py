"""Stages with layers on a device whose buffers are not host memory: ggml's RPC server on loopback.

They agree with the CPU. A server that dies, devices and layers that are not there.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rpc
from commands import command
from quantmill import offload, spec
from quantmill.engine.vocabulary import Vocabulary
from quantmill.files import write_json, writing
from quantmill.formats.chunks import Chunk, write_chunks
from quantmill.formats.imatrix import read_gguf
from quantmill.formats.sensitivity import read_sensitivity

DATA = Path(__file__).parents[1] / "data"
LLAMA, MOE = DATA / "tiny-llama.gguf", DATA / "tiny-moe.gguf"
CHUNKS, CONTEXT = 4, 128
CORPUS = {"corpus": "c", "chunks": CHUNKS, "context": CONTEXT}
STAGES = ("imatrix", "divergence", "perplexity", "speed", "sensitivity", "humaneval")


@pytest.fixture(scope="module")
def server() -> Iterator[rpc.Server]:
    with rpc.server() as running:
        yield running


class Bench:
    """A folder in which stages measure a model, spread as `settings` say."""

    def __init__(self, folder: Path, model: Path, **settings: Any) -> None:
        self.folder, self.model = folder, model
        folder.mkdir(exist_ok=True)
        self.environment = os.environ | {offload.VARIABLE: json.dumps({"m": settings} if settings else {})}
        write_json(folder / "facts.json", {"sha256": f"of {model.name}"})
        with Vocabulary(model) as vocabulary, writing(folder / "c.parquet") as file:
            tokens = vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))
            rows = tokens[: CHUNKS * CONTEXT].reshape(CHUNKS, CONTEXT)
            write_chunks(file, [Chunk("text", row, []) for row in rows])

    def command(self, stage: str, out: str) -> list[str]:
        folder = self.folder
        shared = {"model": self.model, "name": "m", "threads": 2, "store": folder / "store"}
        measured = shared | {"facts": folder / "facts.json", "out": folder / out}
        match stage:
            case "imatrix":
                text = spec.make("measure.imatrix", CORPUS, {"model": "m"}, engine="e")
                files = {"gguf": folder / "i.gguf", "dat": folder / "i.dat", "report": folder / out}
                return command("measure.imatrix", text, **shared, corpus=folder / "c.parquet", **files)
            case "divergence" | "perplexity":
                text = spec.make(f"measure.{stage}", CORPUS, {}, engine="e")
                of = {"reference": self.model, "reference-facts": folder / "facts.json"}
                more = of if stage == "divergence" else {}
                return command(f"measure.{stage}", text, **measured, corpus=folder / "c.parquet", **more)
            case "speed":
                text = spec.make("measure.speed", {"prompt": 16, "generate": 4, "repetitions": 2}, {})
                del measured["store"]
                return command("measure.speed", text, **measured)
            case "sensitivity":
                config = {**CORPUS, "chunks": 2, "minutes": 60, "types": ["q8_0", "q4_0"]}
                text = spec.make("sensitivity.measure", config, {"model": "m"}, engine="e")
                manifest = {"manifest": folder / "m.tsv", "facts": folder / "m.json"}
                self.finish(
                    command(
                        "model.manifest", spec.make("model.manifest", {}, {}), model=self.model, **manifest
                    )
                )
                files = {"manifest": folder / "m.tsv", "out": folder / "s.tsv", "report": folder / out}
                return command("sensitivity.measure", text, **shared, corpus=folder / "c2.parquet", **files)
            case _:
                config = {"limit": 2, "max_tokens": 24, "stop": ["\nclass"], "parallel": 2, "prompt": "plain"}
                config |= {"seconds": 10.0, "memory": 1 << 30, "accept_unsandboxed": True}
                config |= {"instruction": "", "template": {}}
                text = spec.make("evaluate.humaneval", config, {}, engine="e")
                files = {"problems": DATA / "problems.jsonl", "samples": folder / "samples.jsonl"}
                return command("evaluate.humaneval", text, **measured, **files)

    def finish(self, words: list[str]) -> None:
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment)
        assert done.returncode == 0, done.stderr

    def measure(self, stage: str) -> dict[str, Any]:
        """The report of a stage."""
        if stage == "sensitivity":
            with writing(self.folder / "c2.parquet") as file, Vocabulary(self.model) as vocabulary:
                tokens = vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))
                rows = tokens[: 2 * CONTEXT].reshape(2, CONTEXT)
                write_chunks(file, [Chunk("text", row, []) for row in rows])
        self.finish(self.command(stage, f"{stage}.json"))
        report: dict[str, Any] = json.loads((self.folder / f"{stage}.json").read_text("utf-8"))
        return report


@pytest.mark.parametrize("model", [LLAMA, MOE])
@pytest.mark.parametrize("where", ["all", "half", "experts"])
def test_stages_agree_with_the_cpu(tmp_path: Path, server: rpc.Server, model: Path, where: str) -> None:
    settings: dict[str, Any] = {"rpc": [server.endpoint]}
    if where == "half":
        settings["gpu_layers"] = 2
    if where == "experts":
        settings |= {"gpu_layers": "auto", "tensors": {r"ffn_(up|gate|down)": "CPU"}, "batch": 512}
    stages = STAGES if where == "half" else STAGES[:3]
    here, there = Bench(tmp_path / "cpu", model), Bench(tmp_path / "rpc", model, **settings)
    for stage in stages:
        ours, theirs = here.measure(stage), there.measure(stage)
        assert "devices" not in ours
        if stage != "sensitivity":
            (place,) = theirs["devices"]
            (device,) = place["devices"]
            assert (device["device"], device["description"]) == ("RPC0", server.endpoint)
            assert place["layers"] == (2 if where == "half" else place["of"])
            assert min(device["weights"], device["cache"], device["compute"]) > 0
        match stage:
            case "imatrix":
                one, other = (read_gguf(bench.folder / "i.gguf").entries for bench in (here, there))
                assert one.keys() == other.keys()
                for name in one:
                    np.testing.assert_allclose(other[name].in_sum2, one[name].in_sum2, rtol=1e-4, atol=1e-6)
                    np.testing.assert_array_equal(other[name].counts, one[name].counts)
            case "perplexity":
                assert theirs["perplexity"] == pytest.approx(ours["perplexity"], rel=1e-3)
            case "divergence":
                assert (theirs["kld"]["max"], theirs["kld"]["min"]) == (0, 0)
                assert theirs["cpu"]["chunks"] == 1 and 0 <= theirs["cpu"]["mean"] < 1e-6
            case "speed":
                assert theirs["generate"]["mean"] > 0
            case "sensitivity":
                rows, others = (read_sensitivity(bench.folder / "s.tsv") for bench in (here, there))
                assert [row.kld for row in others] == pytest.approx([row.kld for row in rows], rel=1e-3)
            case _:
                assert theirs["generated_tokens"] == ours["generated_tokens"]
