"""KL divergence of a model from the reference, with the whole set of statistics of llama-perplexity.

One evaluation of a model gives its divergence and its nll: the units of the
stage `measure.perplexity` are put into the store too. The reference is a model
like any other, its divergence from itself the floor of what is measured; its
own pass makes its predictions (`reference`), which all others find in the store.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from quantmill import command
from quantmill.engine import library
from quantmill.engine.evaluator import Evaluator, Tokens
from quantmill.errors import QuantmillError
from quantmill.formats.measurements import (
    DIVERGENCE,
    Described,
    Divergence,
    Value,
)
from quantmill.formats.publication import model_sha256
from quantmill.formats.settings import Chunks
from quantmill.measure import perplexity, reference
from quantmill.measure.elsewhere import on_cpu
from quantmill.measure.placed import note, noted
from quantmill.measure.reference import Floats, Reference, Values, compare
from quantmill.measure.saved import Saved
from quantmill.measure.score import (
    cut,
    groups,
    load_chunks,
    loaded_to_score,
    predictions,
    shared,
    unit_key,
    units,
)
from quantmill.measure.score import perplexity as perplexity_of
from quantmill.measure.statistics import Numbers, distribution, mean
from quantmill.progress import Log
from quantmill.store import Identity, Store

STAGE = "measure.divergence"

Load = Callable[[Path], AbstractContextManager[Evaluator]]


@dataclass(frozen=True)
class Model:
    """A GGUF to evaluate, and what, beside the tokens, determines its predictions."""

    path: Path
    identity: Identity


def measure(
    model: Model, source: Model, chunks: Tokens, *, threads: int, store: Store, log: Log
) -> tuple[Values, float]:
    """Every scored prediction of `chunks` [n, context] beside those of `source`, and the seconds taken.

    A model is loaded only if a unit is missing. Predictions of the source that
    the store has lost are made again first, so that no two models are in
    memory at once.
    """
    identity = model.identity | {"reference": source.identity["model"]}
    key_of = partial(unit_key, STAGE, identity=identity)
    itself = model.identity == source.identity

    def load(path: Path) -> AbstractContextManager[Evaluator]:
        return loaded_to_score(path, chunks.shape[1], threads)

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        predicted = partial(_references, source, load=load, pool=pool, store=store, log=log)
        due = [] if itself else [part for part in cut(chunks) if store.get(key_of(part)) is None]
        payloads = predicted(due)
        loaded = cache(lambda: stack.enter_context(load(model.path)))

        def make(part: Tokens, saved: Saved) -> bytes:
            start = time.monotonic()
            key = unit_key(reference.STAGE, part, source.identity)
            stored = payloads.pop(key, None) or store.get(key)
            if stored is None and not itself:  # evicted since
                stored = predicted([part])[key]
            for stage, by in ((STAGE, identity), (perplexity.STAGE, model.identity)):
                note(store, stage, by, loaded().placement)
            done, state = saved.load()
            progress.reuse(done)
            compared = [Values.from_bytes(state[0])[0]] if done else []
            made = reference.from_bytes(state[1]) if done and stored is None else []
            theirs = reference.from_bytes(stored) if stored is not None else []
            pieces = iter(theirs[done * len(theirs) // len(part) :])
            for group in groups(part[done:], loaded()):
                for logits, targets in predictions(loaded(), group, progress):
                    if stored is None:
                        made.append(_stored(logits, targets, pool, model.path))
                    beside = made[-1] if stored is None else next(pieces)
                    _check_vocabulary(loaded(), beside, model.path)
                    compared.append(compare(logits, targets, beside, pool))
                    _check_finite(compared[-1].nll + compared[-1].kld, model.path)
                done += len(group)
                saved.save(done, partial(_state, made, compared))
            values, seconds = Values.joined(compared), time.monotonic() - start
            if stored is None:
                store.put(key, reference.to_bytes(made))
            store.put(
                unit_key(perplexity.STAGE, part, model.identity), perplexity.to_bytes(values.nll, seconds)
            )
            return values.to_bytes(seconds)

        progress = stack.enter_context(log.progress("divergence", len(chunks), "chunks"))
        made = [Values.from_bytes(unit) for unit in units(STAGE, chunks, identity, store, progress, make)]
    return Values.joined(values for values, _ in made), sum(seconds for _, seconds in made)


def _references(
    source: Model,
    parts: list[Tokens],
    load: Load,
    pool: ThreadPoolExecutor,
    store: Store,
    log: Log,
) -> dict[str, bytes | memoryview]:
    """Make the source's predictions of those parts for which the store has none; these by their keys."""
    keys = [unit_key(reference.STAGE, part, source.identity) for part in parts]
    missing = {key: part for key, part in zip(keys, parts, strict=True) if store.get(key) is None}
    payloads: dict[str, bytes | memoryview] = {}
    if not missing:
        return payloads
    log.say("the store lacks some of the source's predictions: they are made first")
    total = sum(map(len, missing.values()))
    with load(source.path) as model, log.progress("predictions of the source", total, "chunks") as progress:

        def make(part: Tokens, saved: Saved) -> bytes:
            done, state = saved.load()
            progress.reuse(done)
            pieces = reference.from_bytes(state[0]) if done else []
            for group in groups(part[done:], model):
                for logits, targets in predictions(model, group, progress):
                    pieces.append(_stored(logits, targets, pool, source.path))
                done += len(group)
                saved.save(done, partial(_state, pieces))
            return reference.to_bytes(pieces)

        for key, part in missing.items():
            saved = Saved(store, key)
            payloads[key] = store.get_or_make(key, partial(make, part, saved), leased=True)
            saved.finished()
    return payloads


def _state(pieces: list[Reference], compared: list[Values] | None = None) -> list[bytes]:
    """What is saved of a unit in the making."""
    values = [] if compared is None else [Values.joined(compared).to_bytes(0.0)]
    return [*values, reference.to_bytes(pieces)]


def _stored(logits: Floats, targets: Tokens, pool: ThreadPoolExecutor, path: Path) -> Reference:
    stored = reference.keep(logits, targets, pool)
    _check_finite(stored.nll, path)
    return stored


def _check_vocabulary(model: Evaluator, piece: Reference, path: Path) -> None:
    if piece.vocabulary != model.vocab_size:
        expected = piece.vocabulary
        raise QuantmillError(
            f"has a vocabulary of {model.vocab_size} tokens, the reference one of {expected}",
            path,
            "compare it with the model that it was made from",
        )


def _check_finite(values: NDArray[Any], path: Path) -> None:
    if not np.isfinite(values).all():
        cure = "the file is damaged, or its types are too small for it"
        raise QuantmillError("gives predictions that are not finite", path, cure)


def describe(values: Values, chunks: int) -> Described:
    """llama-perplexity's statistics (tools/perplexity/perplexity.cpp, kl_divergence) of some predictions.

    Errors are standard errors of a mean over predictions, and to first order
    of what is made from means; percentiles are interpolated between the two
    nearest. Δp, the change of the probability of the token that came, is a
    share and not in percent, and so is `same_top`. Beside them the means of
    every chunk, and of `reference` how much of it was stored and the `gap`: the
    divergence over the whole vocabulary less that from the reduced form, where
    both are known.
    """
    ours, theirs = values.nll.astype(np.float64), values.nll_reference.astype(np.float64)
    change = np.exp(-ours) - np.exp(-theirs)
    squares = mean(change**2)
    rms = math.sqrt(squares["mean"])
    same = mean(values.same_top.astype(np.float64))
    log_ratio = mean(ours - theirs)
    ratio = math.exp(log_ratio["mean"])
    spread = ours.std() * theirs.std()
    covariance = ((ours - ours.mean()) * (theirs - theirs.mean())).mean()
    whole = ~np.isnan(values.whole)
    gap = values.whole[whole] - values.kld[whole]
    return {
        "kld": distribution(values.kld),
        "p_diff": {
            **distribution(change),
            "rms": rms,
            "rms_error": 0.5 * squares["error"] / rms if rms else 0.0,
        },
        "same_top": same,
        "perplexity": _perplexity(values.nll),
        "perplexity_reference": _perplexity(values.nll_reference),
        "correlation": float(covariance / spread) if spread else 1.0,
        "log_ratio": log_ratio,
        "ratio": {"value": ratio, "error": ratio * log_ratio["error"]},
        "difference": _difference(ours, theirs),
        "by_chunk": {
            "kld": _by_chunk(values.kld, chunks),
            "nll": _by_chunk(values.nll, chunks),
            "nll_reference": _by_chunk(values.nll_reference, chunks),
            "same_top": _by_chunk(values.same_top, chunks),
        },
        "reference": {
            **reference.FORM,
            "tokens": float(values.tokens_stored.mean()),
            "mass": float(values.mass.mean(dtype=np.float64)),
            "least_mass": float(values.mass.min()),
            "gap": {**mean(gap), "predictions": len(gap), "kld": float(values.whole[whole].mean())},
        },
    }


def _by_chunk(values: NDArray[Any], chunks: int) -> list[float]:
    return list(values.reshape(chunks, -1).mean(axis=1, dtype=np.float64).tolist())


def _perplexity(nll: Floats) -> Value:
    value = perplexity_of(nll)
    return {"value": value["perplexity"], "error": value["error"]}


def _difference(ours: Numbers, theirs: Numbers) -> Value:
    """PPL - PPL of the reference: the error is that of the mean of both nll, each times its perplexity."""
    one, other = math.exp(ours.mean()), math.exp(theirs.mean())
    return {"value": one - other, "error": mean(one * ours - other * theirs)["error"]}


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `measure.divergence`."""
    config: Chunks = args.spec["config"]
    engine = args.spec["engine"]
    library.use(config.get("engine", "mainline"))
    chunks = load_chunks(args.corpus, config)
    ours, theirs = model_sha256(args.facts), model_sha256(args.reference_facts)
    model = Model(args.model, {"engine": engine, "model": ours})
    source = Model(args.reference, {"engine": engine, "model": theirs})
    store = command.store(args, log)
    mine = shared(chunks, args.shard)
    values, seconds = measure(model, source, mine, threads=args.threads, store=store, log=log)
    if args.shard is not None:
        return
    written = cast(
        Divergence,
        {
            "corpus": config["corpus"],
            "chunks": len(chunks),
            "context": config["context"],
            "tokens": len(values.kld),
            "seconds": round(seconds, 3),
            "model_sha256": ours,
            "reference_sha256": theirs,
            **describe(values, len(chunks)),
        },
    )
    if engine_mark := library.marked().get("engine"):
        written["engine"] = engine_mark
    if places := noted(store, STAGE, model.identity | {"reference": theirs}):
        written["devices"] = places
    if ours == theirs and places:
        there = on_cpu(args.model, chunks, source.identity, threads=args.threads, store=store, log=log)
        if there is not None:
            written["cpu"] = there
            log.say(f"on the CPU it diverges from that by {there['mean']:.3g}, {there['max']:.3g} at most")
    DIVERGENCE.write(args.out, written)
    kld, same = written["kld"], written["same_top"]
    value = f"{kld['mean']:.6f} +/- {kld['error']:.6f}, same top {100 * same['mean']:.2f} %"
    log.say(f"KL divergence {value}; {store.made} units made, {store.reused} reused")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True, evaluates=True, shards=True)
    arguments.add_argument("--model", type=Path, required=True, help="the GGUF to measure")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--reference", type=Path, required=True, help="the GGUF to compare it with")
    arguments.add_argument("--reference-facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--corpus", type=Path, required=True, help="token chunks (parquet)")
    arguments.add_argument("--out", type=Path, required=True, help="kld.json")
    command.run(arguments, main)
