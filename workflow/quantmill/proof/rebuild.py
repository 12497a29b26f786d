"""Makes a file again from its lock, and compares it with the one that is there.

Nothing is written: each tensor is quantized by the functions that made it and held against the file's bytes.
A file is a process of its own, since a process has one engine.
"""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import library
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio
from quantmill.formats.moments import MOMENTS
from quantmill.formats.plan import scaled_by
from quantmill.formats.proof import LOCK, Difference, Lock, LockedRecipe, VerifiedFile
from quantmill.progress import BYTES, Log
from quantmill.proof import lock as locking
from quantmill.quantize import split
from quantmill.quantize.kernels import Quantizer, Task
from quantmill.quantize.write import Work, pieces, read
from quantmill.spec import digest, file_sha256
from quantmill.store import Store, Unit

SAMPLE: Final = 8
"""Tensors of a file that a sample has; more where the file has more types: one of each."""

OTHER: Final = "differs from the lock"

UNEXPLAINED: Final = "bytes differ though all inputs are the same"


class Job(NamedTuple):
    """A file to make again. `fresh` is an empty folder for a store; `store` has the moments, no tensor of it
    is used.
    """

    results: Path
    source: Path
    recipe: str
    mode: str
    store: Path
    store_max: int
    fresh: Path
    threads: int
    log: Path | None


class Place(NamedTuple):
    """A tensor in a file: its task, where it begins there, and its bytes with the padding."""

    task: Task
    start: int
    size: int


class File(NamedTuple):
    """A file as it should be: its name below `gguf/`, its header, its tensors."""

    name: str
    header: bytes
    places: list[Place]

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.places[-1].start + self.places[-1].size if self.places else len(self.header)


def rebuilt(job: Job) -> VerifiedFile:
    """What came of making a file again; what hinders it is in `refused`."""
    lock = LOCK.read(job.results / "lock.json")
    locked = lock["recipes"][job.recipe]
    outcome: VerifiedFile = {
        "recipe": job.recipe,
        "file": locked["files"][0]["file"],
        "tensors": 0,
        "compared": 0,
        "engine": "",
        "differences": [],
        "refused": None,
    }
    try:
        _rebuild(job, lock, locked, outcome)
    except QuantmillError as error:
        outcome["refused"] = str(error)
    return outcome


def _rebuild(job: Job, lock: Lock, locked: LockedRecipe, outcome: VerifiedFile) -> None:
    log = Log(job.log, more=True)
    work = read(_files_of(job, lock, locked), locked["settings"], Store(job.store, job.store_max, log), log)
    engine = library.digest(file_sha256, library.in_use())
    files = files_of(lock["model"], job.recipe, locked, work)
    every = {task.name for task in work.todo}
    chosen = sample(work.todo, locked["sha256"]) if job.mode == "sample" else every
    outcome |= {"tensors": len(work.todo), "compared": len(chosen), "engine": engine}
    causes = Causes(job, lock, locked, work)
    outcome["differences"] += [Difference(tensor=name, type="", cause=OTHER) for name in causes.inputs]
    size = sum(place.size for file in files for place in file.places if place.task.name in chosen)
    with (
        Quantizer(engine, Store(job.fresh), job.threads, work.moments, work.cross, keep=False) as quantizer,
        log.progress(f"verify {job.recipe}", size, BYTES) as progress,
    ):
        todo = [task for task in work.todo if task.name in chosen]
        made = pieces(todo, work.source, quantizer)
        for file, whole in zip(files, locked["files"], strict=True):
            places = [place for place in file.places if place.task.name in chosen]
            sha256 = hashlib.sha256(file.header)  # of all, in `all`
            there = _bytes_of(job.results / "gguf" / file.name)
            differing = [*_differing_head(file, there)]
            for place in places:
                data = _padded(next(made), place.size)
                sha256.update(data.data)
                if not np.array_equal(there[place.start : place.start + place.size], data):
                    differing.append((place.task.name, place.task.type))
                progress.add(place.size)
            outcome["differences"] += [
                Difference(tensor=name, type=kind, cause=causes.of(name, file.name))
                for name, kind in differing
            ]
            if job.mode == "all" and not differing and sha256.hexdigest() != whole["sha256"]:
                cause = "is made again bit for bit, and the lock is of another file"
                outcome["differences"].append(Difference(tensor="file", type="", cause=cause))


def _files_of(job: Job, lock: Lock, locked: LockedRecipe) -> Namespace:
    """The files that the file was made from, as the command line of `quantize.write` has them."""
    results, settings = job.results, locked["settings"]
    rounding = settings.get("rounding")
    moments = results / "moments.json" if rounding else None
    corpus = moments and results / "corpus" / f"{MOMENTS.read(moments)['corpus']}.parquet"
    return Namespace(
        model=job.source,
        manifest=results / "manifest.tsv",
        plan=results / "plans" / f"{job.recipe}.tsv",
        report=results / "plans" / f"{job.recipe}.json",
        imatrix=results / "imatrix.gguf" if lock["imatrix"] is not None else None,
        moments=moments,
        calibration=corpus,
        cross=results / "cross" / f"{job.recipe}.json" if rounding == "gptaq" else None,
        threads=job.threads,
    )


def files_of(model: str, recipe: str, locked: LockedRecipe, work: Work) -> list[File]:
    """The files of a recipe as they should be. QuantmillError where the lock has others."""
    stem, most = f"{model}-{recipe}", locked["settings"].get("split")
    if most is None:
        named = [(f"{stem}.gguf", split.header(work.kv, work.rows), len(work.rows))]
    else:
        alone = locked["settings"].get("header", False)
        made = split.files(stem, work.kv, work.rows, most, header_alone=alone)
        named = [(f"{stem}/{one.name}", one.header, one.tensors) for one in made]
    if [name for name, _, _ in named] != [part["file"] for part in locked["files"]]:
        what = f"has other files of {recipe} than its plan asks for"
        raise QuantmillError(what, "lock.json", "delete it to have it made again")
    tasks, files = iter(zip(work.todo, work.rows, strict=True)), []
    for name, header, count in named:
        places, start = [], len(header)
        for _ in range(count):
            task, row = next(tasks)
            places.append(Place(task, start, ggufio.padded(row.bytes)))
            start += places[-1].size
        files.append(File(name, header, places))
    return files


def sample(todo: Sequence[Task], seed: str) -> set[str]:
    """The names of some tensors, always the same of a file: one of each type, and more up to `SAMPLE`."""
    ordered = sorted(todo, key=lambda task: digest([seed, task.name]))
    first = {task.type: task.name for task in reversed(ordered)}
    others = [task.name for task in ordered if task.name not in first.values()]
    return {*first.values(), *others[: max(0, SAMPLE - len(first))]}


def _bytes_of(path: Path) -> NDArray[np.uint8]:
    try:
        return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    except OSError as error:
        raise QuantmillError(f"cannot be read ({error.strerror})", path, "delete the file's report") from None


def _differing_head(file: File, there: NDArray[np.uint8]) -> Iterator[tuple[str, str]]:
    if there[: len(file.header)].tobytes() != file.header:
        yield "header", ""
    if len(there) != file.size:
        yield "file", ""


def _padded(piece: Unit | bytes | memoryview, size: int) -> NDArray[np.uint8]:
    data = np.frombuffer(piece.payload if isinstance(piece, Unit) else piece, np.uint8)
    return data if len(data) == size else np.concatenate([data, np.zeros(size - len(data), np.uint8)])


class Causes:
    """Why bytes differ: what is not as the lock has it, looked up once something differs."""

    def __init__(self, job: Job, lock: Lock, locked: LockedRecipe, work: Work) -> None:
        self._job, self._lock, self._locked, self._work = job, lock, locked, work
        self._tasks = {task.name: task for task in work.todo}

    def of(self, name: str, file: str) -> str:
        """The causes for a tensor, for the header, or for a whole file."""
        task = self._tasks.get(name)
        causes = [
            *self._engine,
            *(f"{name} {OTHER}" for name, input_ in self.inputs.items() if input_(task)),
            *([f"the source {OTHER}"] if task and self._source(task) else []),
            *(["the file was changed after it was locked"] if self._changed(file) else []),
        ]
        return " and ".join(causes) or UNEXPLAINED

    @cached_property
    def _engine(self) -> list[str]:
        name = library.in_use()
        locked = self._lock["engines"][name]["libraries"]
        differing = [one for one, sha256 in locking.libraries(name).items() if locked.get(one) != sha256]
        if (
            "rounding" in self._locked["settings"]
            and locking.kernel()["sha256"] != (self._lock["kernel"]["sha256"])
        ):
            differing.append("quantmill's kernel")
        return [f"the engine {OTHER} ({', '.join(differing)})"] if differing else []

    @cached_property
    def inputs(self) -> dict[str, Callable[[Task | None], bool]]:
        """What is not as the lock has it of what the file is made from, the engine and the source's data left
        out; of each, whether a tensor depends on it.
        """
        lock, locked, results = self._lock, self._locked, self._job.results
        plan, imatrix = results / "plans" / self._job.recipe, lock["imatrix"]
        changed: dict[str, Callable[[Task | None], bool]] = {}
        for ending, sha256 in (("tsv", locked["plan"]), ("json", locked["report"])):
            if file_sha256(plan.with_name(f"{plan.name}.{ending}")) != sha256:
                changed["the plan"] = lambda task: True
        if imatrix and locked["imatrix"] and file_sha256(results / "imatrix.gguf") != imatrix["sha256"]:
            changed["the imatrix"] = lambda task: task is None or task.importance is not None
        if locking.moments_of(results, self._job.recipe, locked["settings"]) != {
            key: locked[key] for key in ("moments", "cross") if key in locked
        }:
            changed["the second moments"] = lambda task: task is not None and task.moments is not None
        return changed

    def _source(self, task: Task) -> bool:
        source = self._work.source
        name = task.name if task.name in source.tensors else scaled_by(task.name)
        return hashlib.sha256(source.data(name).data).hexdigest() != source.sha256[name]

    def _changed(self, file: str) -> bool:
        part = next(part for part in self._locked["files"] if part["file"] == file)
        return file_sha256(self._job.results / "gguf" / file) != part["sha256"]
