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
    Distribution,
    Divergence,
    Mean,
    Value,
)
from quantmill.formats.publication import model_sha256
from quantmill.formats.settings import Chunks
from quantmill.measure import perplexity, reference
from quantmill.measure.reference import Floats, Reference, Values, compare
from quantmill.measure.score import cut, load_chunks, predictions, unit_key, with_bos
from quantmill.measure.score import loaded as loaded_model
from quantmill.measure.score import perplexity as perplexity_of
from quantmill.progress import Log
from quantmill.store import Identity, Store

STAGE = "measure.divergence"
_BATCH = 512

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
    batch = min(_BATCH, chunks.shape[1])
    key_of = partial(unit_key, STAGE, identity=model.identity | {"reference": source.identity["model"]})
    itself = model.identity == source.identity

    def load(path: Path) -> AbstractContextManager[Evaluator]:
        return loaded_model(path, context=chunks.shape[1], batch=batch, threads=threads)

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        due = [part for part in cut(chunks) if store.get(key_of(part)) is None]
        predicted = partial(_references, source, load=load, pool=pool, store=store, log=log)
        payloads = {} if itself else predicted(due)
        progress = stack.enter_context(log.progress("divergence", len(chunks), "chunks"))
        progress.reuse(len(chunks) - sum(map(len, due)))
        loaded = cache(lambda: stack.enter_context(load(model.path)))

        def make(part: Tokens) -> bytes:
            start = time.monotonic()
            key = unit_key(reference.STAGE, part, source.identity)
            stored = payloads.pop(key, None) or store.get(key)
            if stored is None and not itself:  # evicted since
                stored = predicted([part])[key]
            pieces = [] if stored is None else reference.from_bytes(stored)
            _check_vocabulary(loaded(), pieces, model.path)
            compared: list[Values] = []
            for chunk in part:
                for logits, targets in predictions(loaded(), with_bos(chunk, loaded().bos), batch):
                    if stored is None:
                        pieces.append(_stored(logits, targets, pool, model.path))
                    compared.append(compare(logits, targets, pieces[len(compared)], pool))
                    _check_finite(compared[-1].nll + compared[-1].kld, model.path)
                progress.add(1)
            values, seconds = Values.joined(compared), time.monotonic() - start
            if stored is None:
                store.put(key, reference.to_bytes(pieces))
            store.put(
                unit_key(perplexity.STAGE, part, model.identity), perplexity.to_bytes(values.nll, seconds)
            )
            return values.to_bytes(seconds)

        units = [
            Values.from_bytes(store.get_or_make(key_of(part), partial(make, part))) for part in cut(chunks)
        ]
    return Values.joined(values for values, _ in units), sum(seconds for _, seconds in units)


def _references(
    source: Model,
    parts: list[Tokens],
    load: Load,
    pool: ThreadPoolExecutor,
    store: Store,
    log: Log,
) -> dict[str, bytes | memoryview]:
    """Make the source's predictions of those parts for which the store has none; these by their keys."""
    with ExitStack() as stack:

        @cache
        def loaded() -> Evaluator:
            log.say("the store lacks some of the source's predictions: they are made first")
            return stack.enter_context(load(source.path))

        def make(part: Tokens) -> bytes:
            pieces = []
            for chunk in part:
                for logits, targets in predictions(loaded(), with_bos(chunk, loaded().bos), loaded().batch):
                    pieces.append(_stored(logits, targets, pool, source.path))
            return reference.to_bytes(pieces)

        payloads = {}
        for part in parts:
            key, made = unit_key(reference.STAGE, part, source.identity), store.made
            payload = store.get_or_make(key, partial(make, part))
            # A stored one is read again in its turn: each that is held may hold a file open.
            if store.made > made:
                payloads[key] = payload
        return payloads


def _stored(logits: Floats, targets: Tokens, pool: ThreadPoolExecutor, path: Path) -> Reference:
    stored = reference.keep(logits, targets, pool)
    _check_finite(stored.nll, path)
    return stored


def _check_vocabulary(model: Evaluator, pieces: list[Reference], path: Path) -> None:
    if pieces and pieces[0].vocabulary != model.vocab_size:
        expected = pieces[0].vocabulary
        raise QuantmillError(
            f"has a vocabulary of {model.vocab_size} tokens, the reference one of {expected}",
            path,
            "compare it with the model that it was made from",
        )


def _check_finite(values: NDArray[Any], path: Path) -> None:
    if not np.isfinite(values).all():
        cure = "the file is damaged, or its types are too small for it"
        raise QuantmillError("gives predictions that are not finite", path, cure)


_Numbers = NDArray[np.float64]
_QUANTILES = (99.9, 99, 95, 90, 75, 25, 10, 5, 1, 0.1)


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
    squares = _mean(change**2)
    rms = math.sqrt(squares["mean"])
    same = _mean(values.same_top.astype(np.float64))
    log_ratio = _mean(ours - theirs)
    ratio = math.exp(log_ratio["mean"])
    spread = ours.std() * theirs.std()
    covariance = ((ours - ours.mean()) * (theirs - theirs.mean())).mean()
    whole = ~np.isnan(values.whole)
    gap = values.whole[whole] - values.kld[whole]
    return {
        "kld": _distribution(values.kld),
        "p_diff": {
            **_distribution(change),
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
            "gap": {**_mean(gap), "predictions": len(gap), "kld": float(values.whole[whole].mean())},
        },
    }


def _by_chunk(values: NDArray[Any], chunks: int) -> list[float]:
    return list(values.reshape(chunks, -1).mean(axis=1, dtype=np.float64).tolist())


def _mean(values: _Numbers) -> Mean:
    """The mean and its standard error, by llama-perplexity's formula."""
    error = math.sqrt(values.var() / (len(values) - 1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "error": error}


def _distribution(values: _Numbers) -> Distribution:
    values_at = np.percentile(values, _QUANTILES)
    named = {f"{percent:g}%": float(value) for percent, value in zip(_QUANTILES, values_at, strict=True)}
    extremes = {"max": float(values.max()), "median": float(np.median(values)), "min": float(values.min())}
    return cast(Distribution, {**_mean(values), **named, **extremes})


def _perplexity(nll: Floats) -> Value:
    value = perplexity_of(nll)
    return {"value": value["perplexity"], "error": value["error"]}


def _difference(ours: _Numbers, theirs: _Numbers) -> Value:
    """PPL - PPL of the reference: the error is that of the mean of both nll, each times its perplexity."""
    one, other = math.exp(ours.mean()), math.exp(theirs.mean())
    return {"value": one - other, "error": _mean(one * ours - other * theirs)["error"]}


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `measure.divergence`."""
    config: Chunks = args.spec["config"]
    engine = args.spec["engine"]
    library.use(config.get("engine", "mainline"))
    chunks = load_chunks(args.corpus, config)
    ours, theirs = model_sha256(args.facts), model_sha256(args.reference_facts)
    model = Model(args.model, {"engine": engine, "model": ours})
    source = Model(args.reference, {"engine": engine, "model": theirs})
    store = Store(args.store, args.store_max, log)
    values, seconds = measure(model, source, chunks, threads=args.threads, store=store, log=log)
    written: Divergence = {
        "corpus": config["corpus"],
        "chunks": len(chunks),
        "context": config["context"],
        "tokens": len(values.kld),
        "seconds": round(seconds, 3),
        "model_sha256": ours,
        "reference_sha256": theirs,
        **library.marked(),
        **describe(values, len(chunks)),
    }
    DIVERGENCE.write(args.out, written)
    kld, same = written["kld"], written["same_top"]
    value = f"{kld['mean']:.6f} +/- {kld['error']:.6f}, same top {100 * same['mean']:.2f} %"
    log.say(f"KL divergence {value}; {store.made} units made, {store.reused} reused")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True)
    arguments.add_argument("--model", type=Path, required=True, help="the GGUF to measure")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--reference", type=Path, required=True, help="the GGUF to compare it with")
    arguments.add_argument("--reference-facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--corpus", type=Path, required=True, help="token chunks (parquet)")
    arguments.add_argument("--out", type=Path, required=True, help="kld.json")
    command.run(arguments, main)
