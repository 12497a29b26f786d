"""Stages that measure a tiny model, run as the rules run them, each on its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from commands import command
from quantmill import offload, spec
from quantmill.engine.vocabulary import Vocabulary
from quantmill.files import write_json, writing
from quantmill.formats.chunks import Chunk, write_chunks

DATA = Path(__file__).parent / "data"
LLAMA, MOE = DATA / "tiny-llama.gguf", DATA / "tiny-moe.gguf"
CHUNKS, CONTEXT = 4, 128
CORPUS = {"corpus": "c", "chunks": CHUNKS, "context": CONTEXT}


class Bench:
    """A folder in which stages measure a model on chunks of a text, spread as `settings` say."""

    def __init__(self, folder: Path, model: Path, chunks: int = CHUNKS, **settings: Any) -> None:
        self.folder, self.model = folder, model
        self.corpus = CORPUS | {"chunks": chunks}
        folder.mkdir(exist_ok=True)
        self.environment = os.environ | {offload.VARIABLE: json.dumps({"m": settings} if settings else {})}
        write_json(folder / "facts.json", {"sha256": f"of {model.name}"})
        with Vocabulary(model) as vocabulary:
            tokens = vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))
        for name, count in (("c", chunks), ("c2", 2)):
            with writing(folder / f"{name}.parquet") as file:
                rows = tokens[: count * CONTEXT].reshape(count, CONTEXT)
                write_chunks(file, [Chunk("text", row, []) for row in rows])

    def command(self, stage: str, out: str) -> list[str]:
        folder = self.folder
        shared = {"model": self.model, "name": "m", "threads": 1, "store": folder / "store"}
        measured = shared | {"facts": folder / "facts.json", "out": folder / out}
        match stage:
            case "imatrix":
                text = spec.make("measure.imatrix", self.corpus, {"model": "m"}, engine="e")
                files = {"gguf": folder / "i.gguf", "dat": folder / "i.dat", "report": folder / out}
                return command("measure.imatrix", text, **shared, corpus=folder / "c.parquet", **files)
            case "moments":
                text = spec.make("measure.moments", self.corpus, {"model": "m"}, engine="e")
                return command(
                    "measure.moments", text, **shared, corpus=folder / "c.parquet", report=folder / out
                )
            case "divergence" | "perplexity":
                text = spec.make(f"measure.{stage}", self.corpus, {}, engine="e")
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

    def finish(self, words: list[str]) -> str:
        """What a command that ends well has said."""
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def shard(self, stage: str, shard: str) -> None:
        """A shard of a stage: it writes units alone."""
        words = self.command(stage, "none.json")
        before = set(self.folder.iterdir())
        self.finish([*words, "--shard", shard])
        assert {path.name for path in set(self.folder.iterdir()) - before} <= {"store"}

    def measure(self, stage: str) -> dict[str, Any]:
        """The report of a stage."""
        self.finish(self.command(stage, f"{stage}.json"))
        return self.read(f"{stage}.json")

    def read(self, name: str) -> dict[str, Any]:
        """A report."""
        report: dict[str, Any] = json.loads((self.folder / name).read_text("utf-8"))
        return report
