"""Perplexity of a model on a corpus, by llama-perplexity's method, resumable in units of chunks."""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantmill import command
from quantmill.engine import library
from quantmill.engine.evaluator import Evaluator, Tokens
from quantmill.errors import QuantmillError
from quantmill.formats.measurements import PERPLEXITY, Perplexity
from quantmill.formats.publication import model_sha256
from quantmill.formats.settings import Chunks
from quantmill.measure.placed import note, noted
from quantmill.measure.saved import Saved
from quantmill.measure.score import (
    groups,
    load_chunks,
    loaded_to_score,
    nll,
    perplexity,
    predictions,
    shared,
    units,
)
from quantmill.progress import Log
from quantmill.store import Identity, Store

STAGE = "measure.perplexity"


def measure(
    path: Path, chunks: Tokens, *, identity: Identity, threads: int, store: Store, log: Log
) -> tuple[NDArray[np.float32], float]:
    """The nll [chunks, context/2 - 1] of every scored token of `chunks` [n, context], and the seconds taken.

    `identity` is what, beside the tokens, determines the result (the engine's
    digest and the model's sha256). The model is loaded only if a unit is missing.
    """
    context = chunks.shape[1]
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))

        @cache
        def model() -> Evaluator:
            return stack.enter_context(loaded_to_score(path, context, threads))

        def make(part: Tokens, saved: Saved) -> bytes:
            start = time.monotonic()
            note(store, STAGE, identity, model().placement)
            done, parts = saved.load()
            values = [np.frombuffer(state, np.float32) for state in parts]
            progress.reuse(done)
            for group in groups(part[done:], model()):
                values += [nll(logits, came, pool) for logits, came in predictions(model(), group, progress)]
                done += len(group)
                saved.save(done, partial(_state, values))
            scored = np.concatenate(values).reshape(len(part), -1)
            return to_bytes(scored, time.monotonic() - start)

        progress = stack.enter_context(log.progress("perplexity", len(chunks), "chunks"))
        stored = list(units(STAGE, chunks, identity, store, progress, make))
    seconds = sum(float(np.frombuffer(unit, np.float64, 1)[0]) for unit in stored)
    values = np.concatenate([np.frombuffer(unit, np.float32, offset=8) for unit in stored])
    return values.reshape(len(chunks), -1), seconds


def _state(values: list[NDArray[np.float32]]) -> list[bytes]:
    """What is saved of a unit in the making."""
    return [np.concatenate(values).tobytes()]


def to_bytes(nll: NDArray[np.float32], seconds: float) -> bytes:
    """The nll of some chunks [chunks, context/2 - 1] as a unit of the store, after the seconds taken."""
    return np.float64(seconds).tobytes() + nll.tobytes()


def report(config: Chunks, nll: NDArray[np.float32], seconds: float, model: str) -> Perplexity:
    """The JSON of one measurement: the perplexity, its error, and the mean nll of every chunk."""
    return {
        "corpus": config["corpus"],
        "chunks": len(nll),
        "context": config["context"],
        "tokens": int(nll.size),
        "nll": [float(value) for value in nll.mean(axis=1, dtype=np.float64)],
        "seconds": round(seconds, 3),
        **perplexity(nll.reshape(-1)),
        "model_sha256": model,
        **library.marked(),
    }


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `measure.perplexity`."""
    config: Chunks = args.spec["config"]
    library.use(config.get("engine", "mainline"))
    chunks = load_chunks(args.corpus, config)
    sha256 = model_sha256(args.facts)
    identity = {"engine": args.spec["engine"], "model": sha256}
    store = command.store(args, log)
    mine = shared(chunks, args.shard)
    nll, seconds = measure(args.model, mine, identity=identity, threads=args.threads, store=store, log=log)
    if not np.isfinite(nll).all():
        cure = "the file is damaged, or its types are too small for it"
        raise QuantmillError("gives perplexities that are not finite", args.model, cure)
    if args.shard is not None:
        return
    written = report(config, nll, seconds, sha256)
    if places := noted(store, STAGE, identity):
        written["devices"] = places
    PERPLEXITY.write(args.out, written)
    value = f"{written['perplexity']:.4f} +/- {written['error']:.5f}"
    log.say(f"perplexity {value}; {store.made} units made, {store.reused} reused")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True, evaluates=True, shards=True)
    arguments.add_argument("--model", type=Path, required=True, help="the GGUF to measure")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--corpus", type=Path, required=True, help="token chunks (parquet)")
    arguments.add_argument("--out", type=Path, required=True, help="perplexity.json")
    command.run(arguments, main)
