"""The second moments of the inputs of a model's weights, measured in passes that fit the memory.

For `rounding: gptq`. Each input is a unit of the store. A pass over the chunks sums up as many inputs
as the free memory holds, in the order of the graph, and computes no further than the last of them. A
killed run finds the inputs of finished passes, and of an unfinished one the sums of minutes ago.
"""

from __future__ import annotations

import argparse
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from quantmill import command, machine
from quantmill.check.kind import kind_of
from quantmill.engine.evaluator import Tokens
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio
from quantmill.formats.moments import MOMENTS, MomentsInput
from quantmill.formats.moments import Moments as Report
from quantmill.formats.settings import Chunks
from quantmill.measure.outer import Input, Outer, Scan, Second, blocks_of
from quantmill.measure.score import batch_of, load_chunks, unit_key, with_bos
from quantmill.model.roles import layer_of
from quantmill.progress import Log
from quantmill.store import Identity, Store

if TYPE_CHECKING:  # whichever engine is imported is the one that the process uses
    from quantmill.engine.mainline import Evaluator, Observer

STAGE: Final = "measure.moments"
_ROOM: Final = 0.6  # of the free memory, for the sums of a pass
_CURE: Final = "delete it to have it made again"
_SAVE_EVERY: Final = 120.0  # seconds: what a killed run loses of a pass, about


class Moments:
    """The second moments of a model on `chunks` [n, context], from the store or measured.

    `inputs` are those of the model's graph, as from `scan`; `identity` is what beside the tokens determines
    them. May be used in several threads.
    """

    def __init__(
        self,
        path: Path,
        chunks: Tokens,
        inputs: Sequence[Input],
        *,
        identity: Identity,
        store: Store,
        threads: int,
        log: Log,
    ) -> None:
        self.inputs = list(inputs)
        self.seconds, self.measured = 0.0, 0
        self._path, self._chunks, self._threads = path, chunks, threads
        self._identity, self._store, self._log = identity, store, log
        self._of = {weight: one for one in inputs for weight in one.weights}
        self._lock = threading.Lock()

    def __contains__(self, weight: str) -> bool:
        return weight in self._of

    def input_of(self, weight: str) -> Input:
        """The input of a weight."""
        return self._of[weight]

    def key(self, weight: str) -> str:
        """The key of the unit of a weight's input."""
        return self._key(self._of[weight])

    def of(self, weight: str) -> Second:
        """The moments of a weight's input; where the store lacks them, measured with others it lacks."""
        one = self._of[weight]
        with self._lock:
            made: dict[str, Second] = {}
            unit = self._store.get(self._key(one))
            if unit is None:
                made = self._pass(self.inputs.index(one))
        return Second.from_bytes(unit) if unit is not None else made[one.name]

    def counts(self, one: Input) -> list[int]:
        """The tokens behind each matrix of a measured input."""
        unit = self._store.get(self._key(one))
        return Second.counts_of(unit) if unit is not None else list(self.of(one.name).counts.tolist())

    def measure(self) -> None:
        """Measure all that the store lacks."""
        for number, one in enumerate(self.inputs):
            if self._store.get(self._key(one)) is None:
                self._pass(number)

    def _key(self, one: Input) -> str:
        return unit_key(STAGE, self._chunks, {**self._identity, "input": one.name})

    def _pass(self, first: int) -> dict[str, Second]:
        """Measure an input, and as many of those missing after it as the memory holds."""
        missing = [one for one in self.inputs[first:] if self._store.get(self._key(one)) is None]
        inputs = _that_fit(missing, machine.memory())
        context, start = self._chunks.shape[1], time.monotonic()
        names = " ".join(one.name for one in inputs)
        partial_key = unit_key(STAGE, self._chunks, {**self._identity, "pass": names})
        with (
            ThreadPoolExecutor(self._threads) as pool,
            self._log.progress("moments", len(self._chunks), "chunks") as progress,
        ):
            observer = Outer(inputs, pool)
            done = observer.resume(self._store.get(partial_key))
            progress.add(done)
            saved = time.monotonic()
            with _loaded(self._path, context, self._threads, observer) as model:
                for number, chunk in enumerate(self._chunks[done:], start=done + 1):
                    _evaluate(model, chunk)
                    progress.add(1)
                    if time.monotonic() - saved > _SAVE_EVERY and number < len(self._chunks):
                        self._store.put(partial_key, observer.state(number))
                        saved = time.monotonic()
        made = observer.mirrored()
        for one in inputs:
            if not np.isfinite(made[one.name].sums).all():
                what = f"non-finite activations in {one.name}"
                raise QuantmillError(what, self._path, "the source is damaged")
            self._store.put(self._key(one), made[one.name].to_bytes())
        if done or time.monotonic() - start > _SAVE_EVERY:
            self._store.put(partial_key, b"")
        self.seconds += time.monotonic() - start
        self.measured += len(inputs)
        return made


def _that_fit(missing: Sequence[Input], memory: machine.Memory) -> list[Input]:
    """The first of the inputs, and those after it that fit the free memory beside it."""
    room = int(memory.available * _ROOM)
    if missing[0].bytes > room:
        raise QuantmillError(
            f"the second moments of its input need {missing[0].bytes:,} bytes of memory, and {memory.where} "
            f"has {memory.available:,} left, of which {room:,} are for them",
            missing[0].name,
            "use a larger machine, or `rounding: nearest`",
        )
    return [
        one
        for one, total in zip(missing, accumulate(one.bytes for one in missing), strict=True)
        if total <= room
    ]


@contextmanager
def _loaded(path: Path, context: int, threads: int, observe: Observer) -> Iterator[Evaluator]:
    from quantmill.engine.mainline import Evaluator

    batch = batch_of(context, whole=False)
    with Evaluator(path, context=context, batch=batch, threads=threads, observe=observe) as model:
        model.reserve()
        yield model


def _evaluate(model: Evaluator, chunk: Tokens) -> None:
    """Every token asks for its logits, or the last layer's inputs would be seen for some tokens only."""
    tokens = with_bos(chunk, model.bos)
    model.clear()
    for start in range(0, len(tokens), model.batch):
        stop = min(start + model.batch, len(tokens))
        model.decode(tokens[start:stop], start, discard=stop == len(tokens))


def scan(path: Path, chunks: Tokens, threads: int) -> list[Input]:
    """The inputs of a model's graph, in its order."""
    observer = Scan()
    with _loaded(path, chunks.shape[1], threads, observer) as model:
        _evaluate(model, chunks[0])
    return list(observer.inputs.values())


def listed(
    report: Report, where: Path, chunks: Tokens, header: ggufio.Header, identity: Identity
) -> list[Input]:
    """The inputs that moments.json (`where`) lists.

    QuantmillError where they are of another model, of other text, or of another engine.
    """
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    inputs = []
    for one in report["inputs"]:
        made = Input(one["name"], one["weights"], one["columns"], one["matrices"])
        for weight in made.weights:
            shape = shapes.get(weight)
            if shape is None or shape[0] != made.columns or made.matrices not in (1, math.prod(shape[2:])):
                what = f"has second moments of an input of {weight} that the source does not have"
                raise QuantmillError(f"{what}: they are of another model", where, _CURE)
        if one["key"] != unit_key(STAGE, chunks, {**identity, "input": made.name}):
            what = "is of another corpus, of another model, or of another version of the engine"
            raise QuantmillError(what, where, _CURE)
        inputs.append(made)
    return inputs


def report_of(moments: Moments, header: ggufio.Header, config: Chunks, identity: Identity) -> Report:
    """moments.json, of moments that are measured."""
    inputs: list[MomentsInput] = []
    few = 0
    for one in moments.inputs:
        tokens = moments.counts(one)
        few += sum(count < one.columns for count in tokens)
        inputs.append(
            {
                "name": one.name,
                "weights": one.weights,
                "columns": one.columns,
                "matrices": one.matrices,
                "blocks": blocks_of(one.columns),
                "tokens": tokens,
                "key": moments.key(one.name),
            }
        )
    missing = [
        tensor.name
        for tensor in header.tensors
        if len(tensor.shape) > 1
        and layer_of(tensor.name) >= 0
        and tensor.type != "f32"
        and tensor.name not in moments
    ]
    warnings = []
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        warnings.append(
            f"{len(missing)} weights have no second moments and are rounded to nearest ({named}): "
            "the model's graph never used them on this corpus"
        )
    if few:
        matrices = sum(one.matrices for one in moments.inputs)
        warnings.append(
            f"{few} of {matrices} inputs (each expert's counted) saw fewer tokens than they have columns: "
            "use more calibration text"
        )
    return {
        "corpus": config["corpus"],
        "chunks": config["chunks"],
        "context": config["context"],
        "model": str(identity["model"]),
        "engine": str(identity["engine"]),
        "inputs": inputs,
        "missing": missing,
        "bytes": sum(one.bytes for one in moments.inputs),
        "seconds": round(moments.seconds, 3),
        "warnings": warnings,
    }


def add_options(arguments: argparse.ArgumentParser) -> None:
    """The options of a stage that rounds, for `asked_for`."""
    arguments.add_argument("--moments", type=Path, nargs="?", help="moments.json, for rounding gptq")
    arguments.add_argument("--calibration", type=Path, nargs="?", help="the corpus that the moments are of")


def asked_for(
    args: argparse.Namespace, rounding: str | None, header: ggufio.Header, store: Store, log: Log
) -> Moments | None:
    """The moments that a stage of `rounding: gptq` was given; None for another rounding.

    What the store has lost of them is measured again, on the corpus that they are of.
    """
    if rounding != "gptq":
        return None
    read = MOMENTS.read(args.moments)
    used: Chunks = {"corpus": read["corpus"], "chunks": read["chunks"], "context": read["context"]}
    chunks = load_chunks(args.calibration, used)
    identity: Identity = {"engine": read["engine"], "model": read["model"]}
    inputs = listed(read, args.moments, chunks, header, identity)
    return Moments(args.model, chunks, inputs, identity=identity, store=store, threads=args.threads, log=log)


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `measure.moments`."""
    config: Chunks = args.spec["config"]
    chunks = load_chunks(args.corpus, config)
    header = ggufio.read_header(args.model)
    kind = kind_of(header)
    if not kind.observed:
        what = f"is {kind.words}, of which no second moments can be measured"
        raise QuantmillError(what, args.model, "use `rounding: nearest` for it")
    identity: Identity = {"engine": args.spec["engine"], "model": args.spec["from"]["model"]}
    store = Store(args.store, args.store_max, log)
    inputs = scan(args.model, chunks, args.threads)
    moments = Moments(
        args.model, chunks, inputs, identity=identity, store=store, threads=args.threads, log=log
    )
    moments.measure()
    report = report_of(moments, header, config, identity)
    MOMENTS.write(args.report, report)
    log.warn(report["warnings"])
    stored = len(inputs) - moments.measured
    log.say(
        f"the second moments of {len(inputs)} inputs; {moments.measured} measured, {stored} from the store"
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--corpus", type=Path, required=True, help="token chunks (parquet)")
    arguments.add_argument("--report", type=Path, required=True, help="moments.json")
    command.run(arguments, main)
