"""What the jobs ask of a machine or a cluster: threads, memory, run time, disk, GPUs.

On this machine the threads are its cores. A job on a cluster's node asks for those of
Snakemake's `--max-threads`, and there takes what the node gives it. Memory and run time
follow from the sizes and from earlier runs, and grow where a job is tried again. Nothing of
this is in a spec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, Final

from quantmill import machine
from quantmill.flow.estimate import Rates, learn
from quantmill.flow.media import loaded
from quantmill.flow.once import once
from quantmill.flow.paths import Paths
from quantmill.flow.project import Project
from quantmill.flow.rules import signed
from quantmill.flow.work import Job, Work

NODE_THREADS: Final = 8
"""Threads of a job on a cluster's node where `--max-threads` does not say."""

_SPARE_MEMORY: Final = 1.25  # beside what an earlier run had
_SPARE_TIME: Final = 3.0  # times what is expected: nodes differ
_LEAST_MINUTES: Final = 10
_UNKNOWN_MINUTES: Final = 240  # of what is not known before others have run


class Resources:
    """The threads and resources of the rules' jobs; `workflow` is Snakemake's."""

    def __init__(self, project: Project, paths: Paths, workflow: Any):
        self.project = project
        self.cores = cores_of(workflow)
        self._elsewhere = runs_elsewhere(workflow)
        self._gpus = _resource(workflow, "gpu")
        self.work = Work(paths, self.cores)

    @once
    def rates(self) -> Rates:
        """What earlier runs tell."""
        return learn(self.work)

    def gpus(self, wildcards: Any) -> int:
        """The devices that a job which evaluates a model takes of Snakemake's resource `gpu`."""
        return self.project.given.offload_of(wildcards.model).gpus or 0

    def evaluation_cores(self, wildcards: Any) -> int:
        """The cores of such a job: all, or its share where a run has several GPUs and a job takes some."""
        own = self.gpus(wildcards)
        return max(1, self.cores // max(1, self._gpus // own)) if own else self.cores

    def memory(
        self, factor: float, more: int, files: Callable[[str], Iterable[str | Path]] | None = None
    ) -> Callable[..., int]:
        """The MB that a job asks for: `factor` times `files` of its model (by default the source) and `more`;
        if an earlier one of its kind had more, then that.
        """
        given = files or self.project.source_files

        @cache
        def of_files(model: str) -> float:
            paths = map(Path, given(model))
            return sum(path.stat().st_size for path in paths if path.exists()) * factor / 1e6 + more

        def megabytes(wildcards: Any, attempt: int, rulename: str) -> int:
            had = self.rates().memory.get((wildcards.model, Job(rulename, wildcards.model).kind))
            return grown(max(of_files(wildcards.model), (had or 0) * _SPARE_MEMORY / 1e6), attempt)

        return signed(megabytes)

    @property
    def quantize_memory(self) -> Callable[..., int]:
        """The MB that quantizing asks for: more where a recipe is rounded with error feedback."""
        nearest, fed_back = self.memory(0.05, 1500), self.memory(0.3, 8000)

        def megabytes(wildcards: Any, attempt: int, rulename: str) -> int:
            is_fed_back = self.project.fed_back(wildcards.model, wildcards.recipe)
            return (fed_back if is_fed_back else nearest)(wildcards, attempt, rulename)

        return signed(megabytes)

    def seeing(self, model: str) -> list[str]:
        """What is loaded to measure a projector."""
        return loaded(self.project, model)

    def imported(self, model: str) -> list[Path]:
        """The file that an importance matrix is imported from."""
        return [Path(self.project.imported_imatrix(model).file)]

    @property
    def runtime(self) -> Callable[..., int] | None:
        """The minutes after which a cluster may end a job; here nothing ends one, and nobody asks."""
        return self._minutes if self._elsewhere else None

    def _minutes(self, wildcards: Any, attempt: int, rulename: str) -> int:
        job = self._job(wildcards, rulename)
        seconds = self.work.seconds(job)
        if seconds is None:
            return grown(_UNKNOWN_MINUTES, attempt)
        seconds *= self.rates().factors.get(job.kind, 1.0)
        return grown(max(_LEAST_MINUTES, seconds * _SPARE_TIME / 60), attempt)

    def disk(self, wildcards: Any, rulename: str) -> int:
        """The MB that a job writes: the file of a recipe, else as much as the source."""
        job = self._job(wildcards, rulename)
        size = self.work.size(job.model)
        if size is None and job.model in self.project.checkpoints:
            files = self.project.checkpoints[job.model].checkpoint_files
            written = sum(file.stat().st_size for file in files if file.exists())
        else:
            written = self.work.file_bytes(job) if job.name else size.bytes if size is not None else 0
        return max(1000, ceil(written / 1e6))

    def _job(self, wildcards: Any, rulename: str) -> Job:
        values = dict(wildcards.items())
        model = values.pop("model")
        return Job(rulename, model, next(iter(values.values()), ""))


def grown(amount: float, attempt: int) -> int:
    """What a job asks for when it is tried for the `attempt`th time: half as much more each time."""
    return ceil(amount * (1 + (attempt - 1) / 2))


def cores_of(workflow: Any) -> int:
    """The cores that a stage gets: all of them, one native stage at a time.

    A measured speed must not be shared, and the kernels' threads would only
    fight. Never part of a spec. Snakemake's `all` knows affinity, but no
    cgroup's quota, and no Slurm job's share: on more threads than that ggml's
    would wait for each other.
    """
    given = workflow.resource_settings.cores
    if not given or runs_elsewhere(workflow):  # whatever this machine has
        return int(workflow.resource_settings.max_threads or NODE_THREADS)
    cores = min(int(given), machine.cores())
    workflow.register_resource("_cores", cores)
    return cores


def runs_elsewhere(workflow: Any) -> bool:
    """Whether jobs run on other machines: only then a number of jobs is not one of cores. Which executor
    it is Snakemake does not say while it reads the workflow.
    """
    return workflow.resource_settings.nodes is not None


def _resource(workflow: Any, resource: str) -> int:
    """What `--resources` of the command line or the profile gives of a resource; 0 where it gives none."""
    given = workflow.resource_settings.resources
    return int(given[resource]) if resource in given else 0
