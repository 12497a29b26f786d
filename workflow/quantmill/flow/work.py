"""What a job takes by rough figures: of its model's size, its settings and the machine's cores.

The figures were measured on an AMD EPYC (Zen 3). What earlier runs took corrects them: `estimate`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Final, NamedTuple

from quantmill.config.corpora import Calibration, Chunks
from quantmill.errors import QuantmillError
from quantmill.flow.once import once
from quantmill.flow.paths import Paths
from quantmill.flow.project import SOURCES
from quantmill.formats.ggufio import read_header
from quantmill.quantize import costs

FILES: Final = "files"
OTHER: Final = "plans, cards and the like"

SHARDS: Final = {
    "shard_imatrix": "measure_imatrix",
    "shard_moments": "measure_moments",
    "shard_sensitivity": "measure_sensitivity",
    "shard_quantize": "quantize",
    "shard_divergence": "measure_divergence",
    "shard_perplexity": "measure_perplexity",
    "shard_embeddings": "measure_embeddings",
    "shard_code": "evaluate_code",
}
"""The rules that do a part of another's work."""

KINDS: Final[dict[str, str]] = {
    "fetch_source": "source",
    "convert_checkpoint": "source",
    "convert_checkpoint_for_now": "source",
    "list_tensors": "source",
    "build_corpus": "corpora",
    "measure_imatrix": "importance matrix",
    "measure_moments": "second moments",
    "measure_cross": "cross moments",
    "calibrate_activations": "activations",
    "measure_sensitivity": "sensitivity",
    "quantize": FILES,
    "quantize_split": FILES,
    "quantize_nearest": FILES,
    "quantize_gptq": FILES,
    "measure_divergence": "KL divergence",
    "measure_nearest": "KL divergence",
    "measure_perplexity": "perplexity",
    "measure_embeddings": "embeddings",
    "measure_projector": "projectors",
    "measure_draft": "draft head",
    "measure_speed": "speed",
    "measure_served": "speed behind a server",
    "evaluate_code": "HumanEval",
    "evaluate_tasks": "tasks",
    "export_checkpoint": "checkpoints",
}
"""What the jobs of a rule are called, in the order of the work; all other rules are `OTHER`."""

_START_SECONDS: Final = 3.0  # a stage's interpreter, its imports, and a small model's loading
_READ_BYTES: Final = 1e9  # a second
_FETCH_BYTES: Final = 5e7
_EVALUATE: Final = 0.09e-9  # seconds of one core for a token and an active parameter, many at a time
_GENERATE_BYTES: Final = 1e10  # of weights a second: generating is bound by the memory
_UNKNOWN_TYPE: Final = 150e-9  # seconds of one core for an element whose type is yet to be chosen
_UNKNOWN_SHARE: Final = 0.35  # of the source's bytes
_ANSWER: Final = (300, 200)  # tokens of a problem and of its answer
_DRAFTING: Final = 1.3  # of generating alone: up to four times through the head's one layer and the output
_QUESTIONS: Final = (1000, 150)  # of a task, and tokens of each

_MEASURES: Final = {
    "measure_imatrix": 1.2,  # beside a plain evaluation
    "measure_moments": 2.0,
    "measure_cross": 4.0,
    "calibrate_activations": 1.1,
    "measure_divergence": 1.1,
    "measure_nearest": 1.1,
    "measure_perplexity": 1.0,
    "measure_embeddings": 1.0,
}

_REPORTS: Final = {
    "measure_imatrix": "imatrix.json",
    "measure_moments": "moments.json",
    "measure_cross": "cross/{}.json",
    "calibrate_activations": "activations.json",
    "measure_divergence": "bench/{}/kld.json",
    "measure_perplexity": "bench/{}/perplexity.json",
    "measure_embeddings": "bench/{}/embeddings.json",
}
"""Where a finished job says how many chunks it evaluated."""


class Job(NamedTuple):
    """A job: its rule, its model, its recipe or row (if any), and the bytes of memory it asks for."""

    rule: str
    model: str
    name: str = ""
    memory: int = 0

    @property
    def kind(self) -> str:
        """What it is called."""
        return KINDS.get(SHARDS.get(self.rule, self.rule), OTHER)


class Size(NamedTuple):
    """A source: the bytes of its files, its parameters, and those that a token meets."""

    bytes: int
    parameters: int
    active: int
    columns: int


class Work:
    """The seconds and bytes of jobs; None where they are not known before others have run."""

    start = _START_SECONDS

    def __init__(self, paths: Paths, cores: int):
        self.paths, self.cores = paths, cores
        self.project = paths.project

    def seconds(self, job: Job) -> float | None:
        """What a job takes, its start included."""
        if job.rule in SHARDS:
            whole = self.seconds(job._replace(rule=SHARDS[job.rule]))
            # The first shard of a sensitivity to run does what the others would, until they run too.
            parts = 1 if job.rule == "shard_sensitivity" else self.project.config.shards
            return None if whole is None else _START_SECONDS + (whole - _START_SECONDS) / parts
        with suppress(QuantmillError):
            size = self.size(job.model)
            work = self._work(job, size) if size is not None or job.kind == "source" else None
            return None if work is None else _START_SECONDS + work
        return None

    def taken(self, job: Job) -> float | None:
        """What a finished job was expected to take: of the tokens that its report names, whatever the
        config says now.
        """
        if job.rule not in _MEASURES:
            return self.seconds(job)
        with suppress(QuantmillError, OSError, ValueError, KeyError, TypeError):
            report = json.loads(
                Path(self.paths.of(job.model, _REPORTS[job.rule].format(job.name))).read_bytes()
            )
            size = self.size(job.model)
            if size is not None and self._chunks(job) is not None:
                tokens = report["chunks"] * report["context"]
                return _START_SECONDS + self._tokens(tokens, size) * _MEASURES[job.rule]
        return None

    @once
    def size(self, model: str) -> Size | None:
        """The size of a source; None while it is to be made, and for a checkpoint that no GGUF is made of."""
        if model not in self.project.config.models:
            return None
        files = list(map(Path, self.project.source_files(model)))
        if not all(file.exists() for file in files) or files[0].suffix != ".gguf":
            return None
        header = read_header(files[0], data=False)
        arch = header.architecture
        experts = header.number(f"{arch}.expert_count")
        share = header.number(f"{arch}.expert_used_count") / experts if experts else 1.0
        active = sum(one.elements * (share if "_exps" in one.name else 1.0) for one in header.tensors)
        active -= sum(one.elements for one in header.tensors if one.name == "token_embd.weight")
        tied = all(one.name != "output.weight" for one in header.tensors)
        active += sum(one.elements for one in header.tensors if tied and one.name == "token_embd.weight")
        whole = sum(one.elements for one in header.tensors)
        columns = max((one.shape[0] for one in header.tensors), default=0)
        return Size(sum(file.stat().st_size for file in files), whole, int(active), columns)

    @once
    def plan(self, model: str, recipe: str) -> dict[str, tuple[int, int]] | None:
        """The (parameters, bytes) of each type in a plan; None where there is none yet."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            plan = json.loads(Path(self.paths.of(model, f"plans/{recipe}.json")).read_bytes())
            return {one["type"]: (one["parameters"], one["bytes"]) for one in plan["by_type"]}
        return None

    def file_bytes(self, job: Job) -> int:
        """The size of the file that a job writes, by its plan or roughly by its source."""
        plan, size = self.plan(job.model, job.name), self.size(job.model)
        if plan is not None:
            return sum(size for _, size in plan.values())
        return int(size.bytes * _UNKNOWN_SHARE) if size is not None else 0

    def files(self, jobs: list[Job]) -> tuple[float, int]:
        """The seconds of quantizing files together, and the bytes of what is made for them.

        A tensor is made once at each type for all of a model's recipes, so that no type has more
        elements than the model.
        """
        elements: dict[tuple[str, str, bool], int] = defaultdict(int)
        sizes: dict[tuple[str, str, bool], int] = defaultdict(int)
        seconds = 0.0
        for job in jobs:
            seconds += _START_SECONDS + costs.copying(self.file_bytes(job))
            for kind, (count, size) in (self.plan(job.model, job.name) or {}).items():
                key = job.model, kind, self._fed_back(job)
                elements[key] += count
                sizes[key] += size
            if self.plan(job.model, job.name) is None:
                model = self.size(job.model)
                seconds += (model.parameters if model else 0) * _UNKNOWN_TYPE / self.cores
        made = 0.0
        for key, count in elements.items():
            model = self.size(key[0])
            once = min(count, model.parameters) if model is not None else count
            columns = model.columns if key[2] and model is not None else 0
            seconds += costs.seconds(key[1], once, columns=columns) / self.cores
            made += sizes[key] * once / count if count else 0
        return seconds, int(made)

    def _fed_back(self, job: Job) -> bool:
        return job.rule != "quantize_nearest" and self.project.fed_back(job.model, job.name)

    def _work(self, job: Job, size: Size | None) -> float | None:
        """The seconds of a job without its start."""
        if size is None:
            return 0.0 if job.rule == "list_tensors" else None
        if job.kind == FILES:
            return self.files([job])[0] - _START_SECONDS
        if job.rule == "list_tensors" and not self.project.config.models[job.model].source.made:
            return 0.0  # it was read with the workflow, and is noted
        if job.kind == "source":
            return size.bytes / (_FETCH_BYTES if job.rule == "fetch_source" else _READ_BYTES)
        if job.rule in _MEASURES:
            chunks = self._chunks(job)
            if chunks is None:
                return 0.0
            again = isinstance(chunks, Calibration) and chunks.mtp and job.rule == "measure_imatrix"
            return self._evaluated(chunks, size) * (_MEASURES[job.rule] + again)  # again: for the draft head
        if job.rule == "measure_sensitivity":
            return self._probed(job.model, size)
        return self._used(job, size)

    def _chunks(self, job: Job) -> Chunks | None:
        """What a measure evaluates; None where another measure of the same corpus does so."""
        if job.rule in ("measure_imatrix", "calibrate_activations"):
            return self.project.calibration(job.model)
        if job.rule in ("measure_moments", "measure_cross"):
            return self.project.moments(job.model)
        bench = self.project.config.bench_of(job.model)
        if job.rule == "measure_embeddings":
            return bench.embeddings
        if job.rule != "measure_perplexity":
            return bench.kld
        kld, perplexity = bench.kld, bench.perplexity
        if kld and perplexity and kld.corpus == perplexity.corpus and kld.context == perplexity.context:
            left = perplexity.chunks - kld.chunks
            return perplexity.model_copy(update={"chunks": left}) if left > 0 else None
        return perplexity

    def _evaluated(self, chunks: Chunks, size: Size) -> float:
        return self._tokens(chunks.chunks * chunks.context, size)

    def _tokens(self, tokens: float, size: Size) -> float:
        return tokens * size.active * _EVALUATE / self.cores

    def _generated(self, tokens: float, weights: float, size: Size) -> float:
        return tokens * weights * size.active / max(1, size.parameters) / _GENERATE_BYTES

    def _probed(self, model: str, size: Size) -> float:
        probes = self.project.probes(model)
        types = [kind for kind in self.project.candidate_types(model) if kind in costs.NANOSECONDS]
        made = sum(costs.seconds(kind, size.parameters) for kind in types)
        return 60 * probes.minutes + made / self.cores

    def _used(self, job: Job, size: Size) -> float:
        """A measure that uses the file as its readers will."""
        bench = self.project.config.bench_of(job.model)
        weights = size.bytes if job.name in SOURCES else self.file_bytes(job)
        if job.rule == "measure_draft" and (draft := bench.draft):
            written = draft.chunks * draft.context / 2
            return self._tokens(2 * written, size) + self._generated(_DRAFTING * written, weights, size)
        if job.rule == "measure_speed" and (speed := bench.speed):
            times = speed.repetitions + 1
            return self._tokens(times * speed.prompt, size) + self._generated(
                times * speed.generate, weights, size
            )
        if job.rule == "measure_served" and (served := bench.served):
            requests = served.workloads * (served.repetitions + 1) * (1 + len(served.draft))
            return sum(
                self._tokens(one.prompt, size) + self._generated(one.generate, weights, size)
                for one in requests
            )
        if job.rule == "evaluate_code" and (code := bench.humaneval):
            number = code.limit or 164
            # Answers that are generated side by side share the reading of the weights.
            generated = self._generated(number * _ANSWER[1], weights, size) / min(code.parallel, 4)
            return self._tokens(number * _ANSWER[0], size) + generated
        if job.rule == "evaluate_tasks" and (tasks := bench.tasks):
            return self._tokens(
                len(tasks.names) * prod((min(tasks.limit or _QUESTIONS[0], _QUESTIONS[0]), _QUESTIONS[1])),
                size,
            )
        return 0.0
