"""The second moments of the inputs of a model's weights, for `rounding: gptq`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from quantmill import command
from quantmill.check.kind import kind_of
from quantmill.engine import library
from quantmill.engine.evaluator import Tokens
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio
from quantmill.formats.moments import MOMENTS
from quantmill.formats.moments import Moments as Report
from quantmill.formats.settings import Chunks
from quantmill.measure.outer import Input, Outer, Scan, Second
from quantmill.measure.passes import Passes, evaluate, loaded
from quantmill.measure.score import load_chunks, unit_key
from quantmill.model.roles import layer_of
from quantmill.progress import Log
from quantmill.store import Identity, Store

STAGE: Final = "measure.moments"
_CURE: Final = "delete it to have it made again"


class Moments(Passes[Second]):
    """The second moments of a model's inputs, as from `scan`."""

    stage, words, unit = STAGE, "second moments", Second

    @contextmanager
    def started(
        self, inputs: Sequence[Input], pool: Executor
    ) -> Iterator[tuple[Outer, Callable[[Tokens], None]]]:
        """See `Passes`. QuantmillError in a process of another engine: two ggml libraries make none."""
        if library.in_use() != "mainline":
            what = "the store has lost its second moments, which engine ik cannot measure"
            cure = "delete it to have it made again, and give the store more room"
            raise QuantmillError(what, "moments.json", cure)
        outer = Outer(inputs, pool)
        with loaded(self.path, self.chunks.shape[1], self.threads, outer) as model:
            yield outer, lambda chunk: evaluate(chunk, model)


def scan(path: Path, chunks: Tokens, threads: int) -> list[Input]:
    """The inputs of a model's graph, in its order."""
    observer = Scan()
    with loaded(path, chunks.shape[1], threads, observer) as model:
        evaluate(chunks[0], model)
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
    inputs = [moments.listed(one) for one in moments.inputs]
    few = sum(count < one["columns"] for one in inputs for count in one["tokens"])
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
    arguments.add_argument("--moments", type=Path, nargs="?", help="moments.json, for rounding gptq or gptaq")
    arguments.add_argument("--calibration", type=Path, nargs="?", help="the corpus that the moments are of")


def asked_for(
    args: argparse.Namespace, rounding: str | None, header: ggufio.Header, store: Store, log: Log
) -> Moments | None:
    """The moments that a stage of `rounding: gptq` or `gptaq` was given; None for rounding to nearest.

    What the store has lost of them is measured again, on the corpus that they are of.
    """
    if rounding is None:
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
    store = command.store(args, log)
    inputs = scan(args.model, chunks, args.threads)
    mine = inputs if args.shard is None else args.shard.of(inputs)
    moments = Moments(args.model, chunks, mine, identity=identity, store=store, threads=args.threads, log=log)
    moments.measure()
    if args.shard is not None:
        return
    report = report_of(moments, header, config, identity)
    MOMENTS.write(args.report, report)
    log.warn(report["warnings"])
    stored = len(inputs) - moments.measured
    log.say(
        f"the second moments of {len(inputs)} inputs; {moments.measured} measured, {stored} from the store"
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True, evaluates=True, shards=True)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--corpus", type=Path, required=True, help="token chunks (parquet)")
    arguments.add_argument("--report", type=Path, required=True, help="moments.json")
    command.run(arguments, main)
