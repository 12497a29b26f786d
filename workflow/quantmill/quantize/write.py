"""Executes a plan: every tensor to its type, streamed into one GGUF."""

from __future__ import annotations

import argparse
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantmill import command, machine
from quantmill.engine import library
from quantmill.engine.ggml import Bytes
from quantmill.errors import QuantmillError
from quantmill.files import part_of
from quantmill.formats import general, ggufio, output, types
from quantmill.formats.allocation import PLAN, Plan
from quantmill.formats.imatrix import Imatrix, as_legacy, read_gguf
from quantmill.formats.manifest import read_manifest_rows
from quantmill.formats.plan import MADE, PlanRow, read_plan, scaled_by, with_scale
from quantmill.formats.publication import FACTS
from quantmill.formats.settings import Quantize
from quantmill.measure.cross import Known
from quantmill.measure.moments import Moments, add_options, asked_for
from quantmill.model.heads import for_file
from quantmill.nvfp4.gguf import together, weights_only
from quantmill.progress import BYTES, Log
from quantmill.quantize import costs, split
from quantmill.quantize.facts import facts_of, imatrix_facts
from quantmill.quantize.feedback import memory_of
from quantmill.quantize.keep import kept
from quantmill.quantize.kernels import Quantizer, Task, task
from quantmill.quantize.nvfp4 import Weight
from quantmill.quantize.stream import not_recorded, write, write_parts
from quantmill.shards import Shard
from quantmill.store import Payload, Store, Unit

# Tensors are begun ahead of the one being written while their sources are
# together smaller than this: memory is bounded by it, or by the largest tensor.
_AHEAD_BYTES = 32 << 20

# Bytes of a tensor that fit wherever Python runs: the memory need not be looked up for it.
_ALWAYS_FITS = 256 << 20


class Source:
    """The source's tensors: the table of its header, the digests of its manifest, and their data."""

    def __init__(self, path: Path, manifest: Path) -> None:
        self.header = ggufio.read_header(path)
        self.tensors = {tensor.name: tensor for tensor in self.header.tensors}
        self.sha256 = {row.name: row.sha256 for row in read_manifest_rows(manifest)}
        if self.sha256.keys() != self.tensors.keys():
            raise QuantmillError(
                f"lists other tensors than {path.name}", manifest, "delete it to have it made again"
            )

    def weight(self, name: str) -> Weight:
        """A tensor, to be quantized to nvfp4 with others."""
        tensor = self.tensors[name]
        return Weight(name, self.sha256[name], tensor.type, tensor.shape, partial(self.data, name))

    def bytes(self, name: str) -> int:
        """How many a tensor has; none for a per-tensor scale that the source does not have."""
        return self.tensors[name].bytes if name in self.tensors else 0

    def data(self, name: str) -> Bytes:
        """A tensor's bytes; empty for a per-tensor scale that the source does not have."""
        if name not in self.tensors:
            return np.empty(0, np.uint8)
        tensor = self.tensors[name]
        return np.frombuffer(part_of(self.header.shards[tensor.shard], tensor.offset, tensor.bytes), np.uint8)


def tasks(
    rows: list[PlanRow],
    source: Source,
    imatrix: Imatrix | None,
    engine: str = "mainline",
    moments: Moments | None = None,
    cross: Known | None = None,
) -> list[Task]:
    """The plan's rows as tasks, checked against the source and the importance matrix.

    With `moments`, those whose input they have are rounded with error feedback, and by
    `cross` moments those whose input these have.
    QuantmillError where the plan is of another source, where a type needs
    importance values that are missing, or where they have another width (an
    imatrix of another model).
    """
    foreign = set(imatrix.entries) - set(source.tensors) if imatrix is not None else set()
    if foreign:
        what = f"has an entry for {min(foreign)}, which the source lacks: it is of another model"
        raise QuantmillError(what, "imatrix", "make it from this source")
    groups = together(with_scale(rows))
    made = [_task(row, source, imatrix, groups, engine) for row in rows]
    return made if moments is None else [_fed_back(task, engine, moments, cross) for task in made]


def _fed_back(task: Task, engine: str, moments: Moments, cross: Known | None) -> Task:
    """The task with the key of its moments, where its type can be rounded so and it has some."""
    changed = task.type in types.fed_back(engine) and task.type != task.source_type
    if not changed or task.name not in moments:
        return task
    has = cross if cross is not None and task.name in cross else moments
    return replace(task, moments=has.key(task.name))


def _task(
    row: PlanRow, source: Source, imatrix: Imatrix | None, groups: Mapping[str, tuple[str, ...]], engine: str
) -> Task:
    if row.made:
        shared = tuple(source.weight(name) for name in groups[scaled_by(row.name)])
        return Task(row.name, source.sha256[scaled_by(row.name)], MADE, row.type, row.shape, None, shared)
    tensor = source.tensors.get(row.name)
    if tensor is None or (tensor.shape, tensor.type) != (row.shape, row.source_type):
        raise QuantmillError(
            "is not in the source as the plan has it", row.name, "delete the plan to have it made again"
        )
    importance = None
    if row.type != row.source_type:
        importance = importance_of(row, imatrix)
        if importance is None and types.needs_imatrix(row.type, row.name):
            raise QuantmillError(
                f"{row.type} needs an importance matrix, which has no entry for it",
                row.name,
                "give it another type, or use text that reaches it",
            )
    sha256 = source.sha256[row.name]
    made = task(row.name, sha256, row.source_type, row.type, row.shape, importance, engine)
    return replace(made, together=tuple(source.weight(name) for name in groups.get(row.name, ())))


def importance_of(row: PlanRow, imatrix: Imatrix | None) -> NDArray[np.float32] | None:
    """The importance f32 [matrices, columns] of a tensor's input; None where the imatrix has none.

    Under-sampled experts are made up for (`Entry.made_up`). QuantmillError where the values have
    another width, or are of other experts: the imatrix is of another model.
    """
    entry = None if imatrix is None else imatrix.entries.get(row.name)
    if entry is None:
        return None
    matrices = int(np.prod(row.shape[2:], dtype=np.int64))
    experts = len(entry.counts)
    if experts > 1 and experts != matrices:
        what = f"the imatrix has {experts} experts for it, not {matrices}: it is of another model"
        raise QuantmillError(what, row.name, "make it from this source")
    mean = entry.made_up().mean().reshape(-1)
    if mean.size == row.shape[0] * matrices:
        return mean.reshape(matrices, row.shape[0])
    if row.name in types.EXEMPT:
        return None
    raise QuantmillError(
        f"the imatrix has {mean.size} values for it, not {row.shape[0] * matrices}: it is of another model",
        row.name,
        "make it from this source",
    )


def _payload(read: Callable[[], Bytes]) -> memoryview:
    return read().data


def pieces(todo: list[Task], source: Source, quantizer: Quantizer) -> Iterator[Unit | Payload]:
    """Each tensor, in order, a unit where it is changed; while one is taken the next ones are being made."""
    ahead: deque[tuple[int, Callable[[], Unit | Payload]]] = deque()
    for item in todo:
        read, size = partial(source.data, item.name), source.bytes(item.name)
        while ahead and sum(size for size, _ in ahead) + size > _AHEAD_BYTES:
            yield ahead.popleft()[1]()
        unchanged = item.type == item.source_type
        ahead.append((size, partial(_payload, read) if unchanged else quantizer.begin(item, read, size)))
    while ahead:
        yield ahead.popleft()[1]()


def expect(todo: list[Task], rows: list[PlanRow], engine: str, store: Store, *, linked: bool) -> None:
    """Tell the store of the units that are going to be used; it keeps those alone that no file holds.

    For what is rounded with error feedback these are also the same tensors rounded to nearest.
    """
    keys, size = [], 0
    for one, row in zip(todo, rows, strict=True):
        if one.type == one.source_type:
            continue
        keys.append(one.key(engine))
        size += 0 if linked else row.bytes
        if one.moments is not None:
            keys.append(replace(one, moments=None).key(engine))
            size += row.bytes
    store.expect(keys, size)


def counted(tensors: Iterator[Unit | Payload], written: Callable[[int], None]) -> Iterator[Unit | Payload]:
    """The same; `written` is told the bytes of each once the next is asked for."""
    for piece in tensors:
        yield piece
        written(len(piece.payload if isinstance(piece, Unit) else piece))


def refuse_if_short(path: Path, file_bytes: int, rows: list[PlanRow], moments: Mapping[str, int]) -> None:
    """QuantmillError where the disk has no room for the file, or the memory none for its largest tensor.

    `moments`: what rounding with the moments of each weight's input takes, in bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(path.parent).free
    if disk < file_bytes:
        raise QuantmillError(
            f"needs {file_bytes:,} bytes, the disk has {disk:,} left", path, "free some space"
        )
    needed, name = max((row.bytes + moments.get(row.name, 0), row.name) for row in rows)
    if needed < _ALWAYS_FITS:
        return
    memory = machine.memory()
    if memory.total < needed:
        of_it = f" ({moments[name]:,} of them for the second moments)" if name in moments else ""
        what = f"needs {needed:,} bytes of memory{of_it}, {memory.where} has {memory.total:,}"
        nearest = ", or `rounding: nearest`" if of_it else ""
        raise QuantmillError(what, name, f"allow it more, or use a larger machine{nearest}")


class Work(NamedTuple):
    """A plan that is ready to be executed: its rows, each as a task, and the metadata of the file.

    `measured` are those by which measurements know it.

    `moments` and `cross` are there where weights are rounded with them.
    """

    plan: Plan
    rows: list[PlanRow]
    source: Source
    todo: list[Task]
    kv: dict[str, ggufio.Value]
    measured: dict[str, ggufio.Value]
    moments: Moments | None
    cross: Known | None


def read(args: argparse.Namespace, settings: Quantize, store: Store, log: Log) -> Work:
    """What the files of a command line ask for; their engine is that of this process from here
    on. `store` has the moments. QuantmillError where one is not of the others.
    """
    plan = PLAN.read(args.report)
    engine = settings.get("engine", "mainline")
    if plan["engine"] != engine:
        raise QuantmillError(
            f"the recipe's engine is {plan['engine']}, and its file was to be made by {engine}",
            args.plan.stem,
            f"give the recipe `engine: {plan['engine']}`",
        )
    library.use(engine)
    rows = read_plan(args.plan)
    source = Source(args.model, args.manifest)
    # A recipe may not use the imatrix, though there is one. Its plan says so.
    imatrix = read_gguf(args.imatrix) if args.imatrix is not None and plan["imatrix"] else None
    if imatrix is not None and engine == "ik":
        imatrix = as_legacy(imatrix.made_up())
    moments = asked_for(args, settings.get("rounding"), source.header, store, log)
    cross = Known(args.cross, store) if settings.get("rounding") == "gptaq" else None
    todo = kept(tasks(rows, source, imatrix, engine, moments, cross), args.manifest, settings)
    header = for_file(source.header, plan.get("mtp"))
    kv = output.output_kv(header, plan["file_type"], imatrix_facts(settings["imatrix"], imatrix))
    kv |= weights_only(header.kv, with_scale(rows))
    values = general.beside(source.header, settings.get("metadata", {}))
    added = general.encoded(values)
    measured = kv | {key: value for key, value in added.items() if key not in general.unmeasured(values)}
    return Work(plan, rows, source, todo, kv | added, measured, moments, cross)


def prepare(work: Work, shard: Shard, engine: str, store: Store, threads: int, log: Log) -> None:
    """Put a shard's tensors into the store, for the file that another job writes."""
    todo = shard.of([task for task in work.todo if task.type != task.source_type])
    store.expect(task.key(engine) for task in todo)
    sizes = [work.source.bytes(task.name) for task in todo]
    with (
        Quantizer(engine, store, threads, work.moments, work.cross) as quantizer,
        log.progress("quantize", sum(sizes), BYTES) as progress,
    ):
        for _, size in zip(pieces(todo, work.source, quantizer), sizes, strict=True):
            progress.add(size)
    log.say(f"{len(todo)} tensors; {store.made} units made, {store.reused} reused")


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `quantize.write`."""
    spec = args.spec
    settings: Quantize = spec["config"]
    store = command.store(args, log)
    work = read(args, settings, store, log)
    if args.shard is not None:
        prepare(work, args.shard, spec["engine"], store, args.threads, log)
        return
    plan, rows, source, todo, kv, measured, moments, cross = work
    of_moments = {
        task.name: memory_of(
            moments.input_of(task.name), args.threads, crossed=cross is not None and task.name in cross
        )
        for task in todo
        if moments is not None and task.moments is not None
    }
    refuse_if_short(args.gguf, plan["file_bytes"], rows, of_moments)
    sizes = [ggufio.padded(row.bytes) for row in rows]
    weights = costs.of_tasks(zip(todo, sizes, strict=True), spec["engine"], store, args.threads)
    most = settings.get("split")
    linked = store.packs.can_link(args.gguf.parent)
    expect(todo, rows, spec["engine"], store, linked=linked)
    recording = store.pack if linked else not_recorded
    with (
        Quantizer(spec["engine"], store, args.threads, moments, cross, keep=not linked) as quantizer,
        store.reserving(args.gguf.parent, plan["file_bytes"]) as reserved,
        log.progress("quantize", sum(sizes), BYTES, weights) as progress,
    ):
        tensors = counted(pieces(todo, source, quantizer), reserved)
        name, alone = args.gguf.name if most else args.gguf.stem, settings.get("header", False)
        files = split.files(name, kv, rows, most, measured, header_alone=alone)
        if most is None:
            written = write(args.gguf, files[0], tensors, progress, recording)
        else:
            written = write_parts(args.gguf, files, tensors, progress, recording)
    facts = facts_of(written, tensors=len(rows))
    if most is not None:
        facts["parts"] = [one.part for one in written]
    FACTS.write(args.facts, facts)
    log.say(f"{len(rows)} tensors, {facts['bytes']} bytes; {store.made} units made, {store.reused} reused")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True, shards=True)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF (its first shard)")
    arguments.add_argument("--manifest", type=Path, required=True, help="manifest.tsv of the source")
    arguments.add_argument("--plan", type=Path, required=True, help="the plan's table")
    arguments.add_argument("--report", type=Path, required=True, help="the plan's JSON")
    arguments.add_argument("--imatrix", type=Path, nargs="?", help="imatrix.gguf, where there is one")
    add_options(arguments)
    arguments.add_argument("--cross", type=Path, nargs="?", help="its cross moments, for rounding gptaq")
    arguments.add_argument(
        "--gguf", type=Path, required=True, help="the quantized file; its folder where it is split"
    )
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its size and sha256")
    command.run(arguments, main)
