"""Hours, memory and disk of a run before it starts: by what earlier runs took, else by rough figures."""

from __future__ import annotations

import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from quantmill import machine, text
from quantmill.files import split_lines
from quantmill.flow.paths import Paths
from quantmill.flow.targets import Targets
from quantmill.flow.work import FILES, KINDS, OTHER, SHARDS, Job, Work
from quantmill.measures import MEASURES

_RULES: Final = {
    "kld": "measure_divergence",
    "perplexity": "measure_perplexity",
    "embeddings": "measure_embeddings",
    "projector": "measure_projector",
    "draft": "measure_draft",
    "speed": "measure_speed",
    "served": "measure_served",
    "humaneval": "evaluate_code",
    "tasks": "evaluate_tasks",
}
"""The rules of the measures by their names."""

_MADE_BY: Final = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"manifest\.tsv", "list_tensors"),
        (r"corpus/(.+)\.parquet", "build_corpus"),
        (r"imatrix\.gguf", "measure_imatrix"),
        (r"moments\.json", "measure_moments"),
        (r"sensitivity\.tsv", "measure_sensitivity"),
        (r"nearest/gguf/.+\.json", "quantize_nearest"),
        (r"nearest/(.+)\.kld\.json", "measure_nearest"),
        (r"card/README\.md", "write_card"),
        *((rf"bench/(.+)/{name}\.json", _RULES[name]) for name in MEASURES),
    )
)
"""Which rule makes a file below a model's results."""

_BENCHMARKS: Final = {
    "list_tensors": "manifest.tsv",
    "measure_imatrix": "imatrix.tsv",
    "measure_moments": "moments.tsv",
    "measure_cross": "cross/*.tsv",
    "calibrate_activations": "activations.tsv",
    "quantize": "gguf/*.tsv",
    "measure_divergence": "kld/*.tsv",
    "measure_perplexity": "perplexity/*.tsv",
    "measure_embeddings": "embeddings/*.tsv",
    "measure_draft": "draft/*.tsv",
    "measure_speed": "speed/*.tsv",
    "measure_served": "served/*.tsv",
    "evaluate_code": "humaneval/*.tsv",
    "evaluate_tasks": "tasks/*.tsv",
}
"""Where Snakemake notes what the jobs of a rule took, below a model's benchmarks."""

_MOST_BENCHMARKS: Final = 20  # of a kind and a model: more tell nothing new
_LEAST_SECONDS: Final = 2.0  # what takes less beyond its start tells nothing of larger models
_FOUND: Final = 0.25  # of the usual share: less, and the stage found its work in the store


class Rates(NamedTuple):
    """What earlier runs tell: how many times the expected seconds a kind took, and its largest memory."""

    factors: dict[str, float]
    memory: dict[tuple[str, str], int]


class Row(NamedTuple):
    """A line of the table; `seconds` None where they are not known yet, `rough` where no run gave them."""

    kind: str
    jobs: int
    seconds: float | None
    rough: bool
    memory: int
    disk: int


def of_dag(jobs: Iterable[Any]) -> list[Job]:
    """Snakemake's jobs that are about a model; all but the targets are."""
    due = []
    for job in jobs:
        wildcards = dict(job.wildcards.items())
        model = wildcards.pop("model", None)
        if model is not None:
            memory = job.resources.get("mem_mb", 0)
            asked = int(memory * 1e6) if isinstance(memory, int) else 0
            due.append(Job(job.rule.name, model, next(iter(wildcards.values()), ""), asked))
    return due


def of_missing(targets: Targets) -> list[Job]:
    """The jobs whose results are missing, of all that there is to make: what is stale is not seen."""
    results = targets.project.results
    due: dict[Job, None] = {}
    for model in targets.project.with_recipes:
        folder = f"{results / model}/"
        for recipe in targets.project.config.recipes_of(model):
            if not Path(targets.paths.facts(model, recipe)).exists():
                due[Job("quantize", model, recipe)] = None
                if targets.project.crossed(model, recipe):
                    due[Job("quantize_gptq", model, recipe)] = None
                    due[Job("measure_cross", model, recipe)] = None
        for file in targets.results(model):
            name = file.removeprefix(folder)
            for pattern, rule in _MADE_BY:
                if (match := pattern.fullmatch(name)) and not Path(file).exists():
                    due[Job(rule, model, "".join(match.groups()))] = None
                    break
    return list(due)


def learn(work: Work) -> Rates:
    """What the benchmarks of earlier runs tell, each job beside what was expected of it."""
    ratios: dict[str, list[tuple[float, float]]] = defaultdict(list)
    memory: dict[tuple[str, str], int] = {}
    for model in work.project.models:
        folder = Path(work.paths.of(model, "benchmarks"))
        for rule, pattern in _BENCHMARKS.items() if folder.is_dir() else ():
            for path in list(folder.glob(pattern))[:_MOST_BENCHMARKS]:
                job = Job(rule, model, path.stem if "*" in pattern else "")
                if (folder / "shards" / pattern.replace("*.tsv", path.stem).removesuffix(".tsv")).is_dir():
                    continue  # its time is that of its shards
                with suppress(OSError, ValueError, KeyError):
                    seconds, bytes_ = _benchmark(path)
                    memory[model, job.kind] = max(bytes_, memory.get((model, job.kind), 0))
                    expected = work.taken(job)
                    if expected is not None and expected - work.start > _LEAST_SECONDS:
                        ratios[job.kind].append(
                            (max(0.0, seconds - work.start) / (expected - work.start), expected)
                        )
    factors = {}
    for kind, pairs in ratios.items():
        usual = max(ratio for ratio, _ in pairs)
        kept = [ratio for ratio, _ in pairs if ratio > _FOUND * usual]
        if kept:
            factors[kind] = median(kept)
    return Rates(factors, memory)


def _benchmark(path: Path) -> tuple[float, int]:
    """(seconds, most bytes of memory) of a job, of Snakemake's table."""
    header, row = split_lines(path.read_text(encoding="utf-8"))[:2]
    values = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    return float(values["s"]), int(float(values["max_rss"]) * 2**20)


def rows(jobs: Sequence[Job], work: Work, rates: Rates) -> list[Row]:
    """The table: a row for each kind of job, in the order of the work, and one for what the store keeps."""
    by_kind: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_kind[job.kind].append(job)
    made = 0
    table = []
    for kind in [*dict.fromkeys(KINDS.values()), OTHER]:
        if not (due := by_kind[kind]):
            continue
        disk = 0
        seconds: float | None
        # What shards take is counted with the job that puts their units together.
        whole = [job for job in due if job.rule not in SHARDS]
        if kind == FILES:
            seconds, made = work.files(whole)
            disk = sum(work.file_bytes(job) for job in due if job.rule in ("quantize", "quantize_split"))
        else:
            known = [one for job in whole if (one := work.seconds(job)) is not None]
            seconds = sum(known) if len(known) == len(whole) else None
        start = work.start * len(due)
        if seconds is not None:
            seconds += work.start * (len(due) - len(whole))
        if seconds is not None and kind in rates.factors:
            seconds = start + max(0.0, seconds - start) * rates.factors[kind]
        table.append(Row(kind, len(due), seconds, kind not in rates.factors, _memory(due, work, rates), disk))
    if made:
        kept = min(made, work.project.config.store.max_bytes)
        table.append(Row("units in the store", 0, None, False, 0, kept))
    return table


def _memory(jobs: list[Job], work: Work, rates: Rates) -> int:
    """The most that a job of a kind had in earlier runs; else what it asks for."""
    known = [rates.memory.get((job.model, job.kind), job.memory) for job in jobs]
    return max(known, default=0)


def lines(table: Sequence[Row], free: int) -> list[str]:
    """The table as text, with the total and the free disk."""
    width = max(len(row.kind) for row in table)
    made = [f"{'to make':{width}}  jobs         time     memory        disk"]
    for row in table:
        time = "" if not row.jobs else "?" if row.seconds is None else text.hours(row.seconds)
        time = f"~{time}" if row.rough and row.seconds is not None else time
        cells = [
            f"{row.jobs or '':>4}",
            f"{time:>11}",
            f"{text.size(row.memory) if row.memory else '':>9}",
            f"{text.size(row.disk) if row.disk else '':>10}",
        ]
        made.append(f"{row.kind:{width}}  {'  '.join(cells)}".rstrip())
    seconds = sum(row.seconds or 0.0 for row in table)
    rough = any(row.rough and row.seconds is not None for row in table)
    unknown = any(row.jobs and row.seconds is None for row in table)
    total = ("> " if unknown else "") + ("~" if rough else "") + text.hours(seconds)
    disk = text.size(sum(row.disk for row in table))
    jobs = sum(row.jobs for row in table)
    made.append(f"{'total':{width}}  {jobs:>4}  {total:>11}  {'':9}  {disk:>10}  (free: {text.size(free)})")
    if rough:
        made.append("~: rough, from no earlier run of this project")
    return made


def warnings(table: Sequence[Row], jobs: Sequence[Job], free: int, memory: machine.Memory) -> list[str]:
    """What will not fit."""
    made = []
    files = sum(row.disk for row in table if row.jobs)
    if files > free:
        made.append(
            f"warning: the files take {text.size(files)}, and the disk of the results has {text.size(free)} "
            "free; free some space, or make fewer recipes at a time"
        )
    largest = max(jobs, key=lambda job: job.memory, default=None)
    if largest is not None and largest.memory > memory.total:
        made.append(
            f"warning: {largest.rule} of {largest.model} asks for {text.size(largest.memory)} of memory, "
            f"{memory.where} has {text.size(memory.total)}; use a larger machine, or a smaller source"
        )
    return made


class Estimate:
    """The table of a run, printed to stderr; whatever goes wrong with it, the run goes on."""

    def __init__(self, targets: Targets, cores: int, workflow: Any):
        self.targets, self.workflow = targets, workflow
        self._work = partial(Work, Paths(targets.project), cores)

    def of_run(self) -> None:
        """Print the table of the jobs that are due; nothing where they take no time."""
        with suppress(Exception):
            jobs = of_dag(self._due())
            if any(job.kind != OTHER for job in jobs):
                self._print(lambda: jobs)

    def of_plans(self) -> None:
        """Print what is still to be made where plans were asked for and nothing else."""
        with suppress(Exception):
            if set(self.workflow.dag_settings.targets) == {"plans"}:
                self._print(lambda: of_missing(self.targets))

    def at_exit(self) -> None:
        """Print what Snakemake has no hook for: the table of a dry run; that of plans that are all there."""
        with suppress(Exception):
            if self.workflow.dryrun:
                self.of_run()
            elif self.workflow.executor_plugin is not None and not self._due():
                self.of_plans()

    def _due(self) -> list[Any]:
        return list(self.workflow.dag.needrun_jobs(exclude_finished=False))

    def _print(self, due: Callable[[], list[Job]]) -> None:
        quiet = {one.name for one in self.workflow.output_settings.quiet or ()}
        if quiet & {"ALL", "PROGRESS"}:
            return
        jobs, work = due(), self._work()
        table = rows(jobs, work, learn(work))
        if not table:
            return
        results = self.targets.project.results.absolute()
        there = next(parent for parent in [results, *results.parents] if parent.is_dir())
        free = shutil.disk_usage(there).free
        for line in ["", *lines(table, free), *warnings(table, jobs, free, machine.memory()), ""]:
            print(line, file=sys.stderr)
