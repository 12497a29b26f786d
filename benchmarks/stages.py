"""The stages as the rules call them, and llama.cpp's tools on the same input."""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from quantmill import machine, spec
from quantmill.config.bench import HumanEval
from quantmill.engine import library

ROOT = Path(__file__).parents[1]
CONTEXT = 512
THREADS = machine.cores()
Command = list[str | Path]


@dataclass(frozen=True)
class Tier:
    """One file of a sweep: a preset, and where wanted the type of embeddings and output."""

    name: str
    base: str
    large: str | None = None

    @property
    def parameters(self) -> dict[str, str]:
        """What recipes/preset.yaml.j2 is given."""
        more = {"embeddings": self.large, "output": self.large} if self.large else {}
        return {"base": self.base} | more


@dataclass(frozen=True)
class Workspace:
    """A model, and a folder in which both sides make everything from it."""

    model: Path
    folder: Path
    tools: Path
    corpora: dict[str, Path] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        """The store of our side: emptied for what is measured cold."""
        return self.folder / "store"

    def path(self, name: str) -> Path:
        """A file of the workspace; its folder is made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def empty_store(self) -> None:
        """Forget every unit."""
        shutil.rmtree(self.store, ignore_errors=True)

    def stage(
        self, stage: str, config: Any, *arguments: str | Path, store: bool = False, engine: str = "mainline"
    ) -> Command:
        """`python -m quantmill.STAGE` with its spec and log, on all cores."""
        source = file_digest(self.model)
        made = spec.make(stage, config, {"model": source}, engine=engine_digest(engine))
        command: Command = [sys.executable, "-m", f"quantmill.{stage}", "--spec", made]
        command += ["--log", self.path(f"logs/{stage}.log"), *arguments]
        return [*command, "--threads", str(THREADS), "--store", self.store] if store else command

    def manifest(self) -> Command:
        """The tensors of the source and their digests."""
        out: Command = ["--manifest", self.path("manifest.tsv"), "--facts", self.path("model.json")]
        return self.stage("model.manifest", {}, "--model", self.model, *out, "--threads", str(THREADS))

    def imatrix(self, chunks: int) -> Command:
        """The importance matrix, with its calibration perplexity."""
        config = {"corpus": "imatrix", "chunks": chunks, "context": CONTEXT}
        out: Command = ["--gguf", self.path("imatrix.gguf"), "--dat", self.path("imatrix.dat")]
        out += ["--report", self.path("imatrix.json")]
        corpus = self.corpora["imatrix"].with_suffix(".parquet")
        return self.stage(
            "measure.imatrix", config, "--model", self.model, "--corpus", corpus, *out, store=True
        )

    def moments(self, chunks: int) -> Command:
        """The second moments, on the text of the importance matrix."""
        config = {"corpus": "imatrix", "chunks": chunks, "context": CONTEXT}
        given: Command = ["--model", self.model, "--corpus", self.corpora["imatrix"].with_suffix(".parquet")]
        return self.stage(
            "measure.moments", config, *given, "--report", self.path("moments.json"), store=True
        )

    def plan(self, name: str, template: Path, parameters: dict[str, Any], *, imatrix: bool = True) -> Command:
        """A recipe from its template, resolved to a plan."""
        facts = self._imatrix() if imatrix else None
        config = {"recipe": name, "imatrix": facts, "parameters": parameters}
        out: Command = ["--recipe", self.path(f"recipes/{name}.yaml")]
        out += ["--plan", self.path(f"plans/{name}.tsv"), "--report", self.path(f"plans/{name}.json")]
        return self.stage("recipe.plan", config, "--model", self.model, "--template", template, *out)

    def write(self, name: str, engine: str = "mainline", *, gptq: bool = False) -> Command:
        """A plan executed by its engine; rounded with error feedback where it is `gptq`."""
        given: Command = ["--manifest", self.path("manifest.tsv"), "--plan", self.path(f"plans/{name}.tsv")]
        given += ["--report", self.path(f"plans/{name}.json"), "--imatrix", self.path("imatrix.gguf")]
        out: Command = ["--gguf", self.path(f"gguf/{name}.gguf"), "--facts", self.path(f"gguf/{name}.json")]
        config = {"imatrix": self._imatrix()} | ({} if engine == "mainline" else {"engine": engine})
        if gptq:
            config["rounding"] = "gptq"
            given += ["--moments", self.path("moments.json")]
            given += ["--calibration", self.corpora["imatrix"].with_suffix(".parquet")]
        return self.stage(
            "quantize.write", config, "--model", self.model, *given, *out, store=True, engine=engine
        )

    def perplexity(self, chunks: int) -> Command:
        """The perplexity of the source."""
        config = {"corpus": "perplexity", "chunks": chunks, "context": CONTEXT}
        given: Command = ["--facts", self.path("model.json")]
        given += ["--corpus", self.corpora["perplexity"].with_suffix(".parquet")]
        out: Command = ["--out", self.path("perplexity.json")]
        return self.stage("measure.perplexity", config, "--model", self.model, *given, *out, store=True)

    def divergence(self, chunks: int, name: str | None = None) -> Command:
        """The divergence of the source from itself, or of the file `name` from it."""
        config = {"corpus": "perplexity", "chunks": chunks, "context": CONTEXT}
        model = self.path(f"gguf/{name}.gguf") if name else self.model
        facts = self.path(f"gguf/{name}.json" if name else "model.json")
        given: Command = ["--model", model, "--facts", facts]
        given += ["--reference", self.model, "--reference-facts", self.path("model.json")]
        given += ["--corpus", self.corpora["perplexity"].with_suffix(".parquet")]
        out: Command = ["--out", self.path(f"kld-{name or 'source'}.json")]
        return self.stage("measure.divergence", config, *given, *out, store=True)

    def sensitivity(self, chunks: int, minutes: float) -> Command:
        """As many probes of the source as the minutes allow, after the error table."""
        config = {"corpus": "tuning", "chunks": chunks, "context": CONTEXT, "minutes": minutes}
        config["types"] = ["q3_K", "q4_K", "q6_K", "q8_0"]
        given: Command = ["--manifest", self.path("manifest.tsv"), "--imatrix", self.path("imatrix.gguf")]
        given += ["--corpus", self.corpora["tuning"].with_suffix(".parquet")]
        out: Command = ["--out", self.path("sensitivity.tsv"), "--report", self.path("sensitivity.json")]
        return self.stage("sensitivity.measure", config, "--model", self.model, *given, *out, store=True)

    def speed(self, prompt: int, generate: int, repetitions: int) -> Command:
        """Prompt processing and generation of the source."""
        config = {"prompt": prompt, "generate": generate, "repetitions": repetitions}
        given: Command = ["--model", self.model, "--facts", self.path("model.json")]
        given += ["--threads", str(THREADS)]
        return self.stage("measure.speed", config, *given, "--out", self.path("speed.json"))

    def humaneval(self, limit: int, max_tokens: int) -> Command:
        """Problems of HumanEval answered by the source, and tested."""
        config = HumanEval(limit=limit, max_tokens=max_tokens)
        given: Command = ["--model", self.model, "--facts", self.path("model.json")]
        given += ["--problems", config.file()]
        out: Command = ["--out", self.path("humaneval.json"), "--samples", self.path("humaneval.jsonl")]
        return self.stage("evaluate.humaneval", config.settings, *given, *out, store=True)

    def llama_quantize(self, tier: Tier) -> Command:
        """The same file by llama.cpp's own tool."""
        command: Command = [self.tools / "llama-quantize", "--allow-requantize"]
        command += ["--imatrix", self.path("imatrix.gguf")]
        if tier.large:
            command += ["--token-embedding-type", tier.large, "--output-tensor-type", tier.large]
        return [*command, self.model, self.path(f"theirs/{tier.name}.gguf"), tier.base, str(THREADS)]

    def ik_quantize(self, name: str) -> Command:
        """The same file by ik_llama.cpp's own tool, which its package brings along."""
        tool = library.folder("ik").parent / "bin" / "llama-quantize"
        command: Command = [tool, "--allow-requantize", "--imatrix", self.path("imatrix.dat")]
        return [*command, self.model, self.path(f"theirs/{name}.gguf"), name, str(THREADS)]

    def llama_imatrix(self, chunks: int) -> Command:
        """llama-imatrix with the settings that are its best on a CPU."""
        text = self.corpora["imatrix"].with_suffix(".txt")
        command: Command = [self.tools / "llama-imatrix", "-m", self.model, "-f", text, "--no-ppl"]
        command += ["-c", str(CONTEXT), "-b", str(CONTEXT), "--chunks", str(chunks), "-t", str(THREADS)]
        return [*command, "-o", self.path("theirs/imatrix.gguf")]

    def llama_perplexity(self, chunks: int) -> Command:
        """llama-perplexity with the settings that are its best on a CPU."""
        text = self.corpora["perplexity"].with_suffix(".txt")
        command: Command = [self.tools / "llama-perplexity", "-m", self.model, "-f", text]
        return [*command, "-c", str(CONTEXT), "-b", str(CONTEXT), "--chunks", str(chunks), "-t", str(THREADS)]

    def llama_divergence(self, chunks: int, name: str | None = None) -> Command:
        """llama-perplexity's two passes: the base file of the source, and a file against it."""
        base: Command = ["--kl-divergence-base", self.path("theirs/base.kld")]
        if name is None:
            return [*self.llama_perplexity(chunks), *base]
        command: Command = [self.tools / "llama-perplexity", "-m", self.path(f"gguf/{name}.gguf"), *base]
        command += ["--kl-divergence", "-c", str(CONTEXT), "-b", str(CONTEXT), "-t", str(THREADS)]
        return command

    def llama_bench(self, prompt: int, generate: int, repetitions: int) -> Command:
        """llama-bench, with JSON to read its figures from."""
        command: Command = [self.tools / "llama-bench", "-m", self.model, "-o", "json", "-t", str(THREADS)]
        return [*command, "-p", str(prompt), "-n", str(generate), "-r", str(repetitions)]

    def _imatrix(self) -> dict[str, Any]:
        report = json.loads(self.path("imatrix.json").read_text("utf-8"))
        return {"file": "bench-imatrix.gguf", "dataset": "imatrix", "chunks": report["chunks"]}


file_digest = cache(spec.file_sha256)


@cache
def engine_digest(engine: str = "mainline") -> str:
    """The digest of an engine's libraries, as the rules put it into every spec."""
    return library.digest(spec.file_sha256, engine)


def make_corpora(model: Path, folder: Path, chunks: dict[str, int]) -> dict[str, Path]:
    """One text and the same tokens as a corpus parquet, for each name in `chunks`.

    The text is Python's own standard library, so that it is on every machine.
    Both sides get the same tokens: llama.cpp's tools tokenise the text (no more
    of it than the chunks need), ours read the corpus file made from these tokens.
    """
    import numpy as np

    from quantmill.engine.vocabulary import Vocabulary
    from quantmill.formats.chunks import Chunk, write_chunks

    library = Path(sysconfig.get_paths()["stdlib"])
    source = "".join(
        path.read_text(errors="ignore", encoding="utf-8") for path in sorted(library.glob("*.py"))
    )
    folder.mkdir(parents=True, exist_ok=True)
    corpora = {}
    start = 0
    with Vocabulary(model) as vocabulary:
        for name, count in chunks.items():
            need, length = count * CONTEXT, count * CONTEXT * 2
            while True:
                text = source[start : start + length]
                tokens = [int(token) for token in vocabulary.tokenize(text, parse_special=False)]
                tokens = [0, *tokens] if vocabulary.adds_bos else tokens
                if len(tokens) > need:
                    break
                length = length * 11 // 10
            start += length
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
            starts = range(0, need, CONTEXT)
            rows = [Chunk("code", np.array(tokens[at : at + CONTEXT], np.int32), []) for at in starts]
            with (folder / f"{name}.parquet").open("wb") as file:
                write_chunks(file, rows)
            corpora[name] = folder / name
    return corpora
