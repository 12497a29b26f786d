"""How far a model's embeddings, or a reranker's scores, are from the source's, on held-out text.

Each chunk is one text, pooled as the model's metadata want it. A reranker scores the beginning of each
chunk as a query for the later parts of the chunks of the same unit. The source is a model like any other,
and its own vectors are units of the store, with which those of all files are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from quantmill import command
from quantmill.check.kind import pooling_of, rerank_template
from quantmill.engine.embedder import Embedder
from quantmill.engine.evaluator import Tokens
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.measurements import EMBEDDINGS, Embeddings
from quantmill.formats.measurements import Compared as Described
from quantmill.formats.publication import model_sha256
from quantmill.formats.settings import CHUNKS_A_UNIT, Chunks
from quantmill.measure.placed import note, noted
from quantmill.measure.saved import Saved
from quantmill.measure.score import load_chunks, shared, units
from quantmill.measure.statistics import Numbers, distribution, mean
from quantmill.progress import Log, Progress
from quantmill.store import Identity, Store

STAGE = "measure.embeddings"

Vectors = NDArray[np.float32]

LEAST_RANKED = 3
"""Texts to be ranked by their closeness to one: fewer have no order to speak of."""


@dataclass(frozen=True)
class Model:
    """A GGUF that embeds, and what, beside the tokens, determines its vectors."""

    path: Path
    identity: Identity
    header: Header


def load(path: Path, header: Header, context: int, threads: int, *, writable: bool = False) -> Embedder:
    """A model, ready for texts of `context` tokens, as its header wants them pooled."""
    return Embedder(
        path,
        context=context,
        threads=threads,
        pooling=pooling_of(header),
        rerank=rerank_template(header),
        writable=writable,
    )


def measure(model: Model, chunks: Tokens, *, threads: int, store: Store, log: Log) -> tuple[Vectors, float]:
    """The embeddings [n, width] of `chunks` [n, context], and the seconds taken. Of a reranker the scores
    [n, 8] of the documents of each chunk's unit, NaN where the last unit has fewer.

    The model is loaded only if a unit is missing.
    """
    with ExitStack() as stack:

        @cache
        def loaded() -> Embedder:
            return stack.enter_context(load(model.path, model.header, chunks.shape[1], threads))

        def make(part: Tokens, _: Saved) -> bytes:
            start = time.monotonic()
            note(store, STAGE, model.identity, loaded().placement)
            made = rows(loaded(), part, progress)
            if not np.isfinite(made).all():
                cure = "the file is damaged, or its types are too small for it"
                raise QuantmillError("gives embeddings that are not finite", model.path, cure)
            return np.float64(time.monotonic() - start).tobytes() + made.tobytes()

        progress = stack.enter_context(log.progress("embeddings", len(chunks), "chunks"))
        made = [bytes(unit) for unit in units(STAGE, chunks, model.identity, store, progress, make)]
    seconds = sum(float(np.frombuffer(unit, np.float64, 1)[0]) for unit in made)
    counts = [min(CHUNKS_A_UNIT, len(chunks) - at) for at in range(0, len(chunks), CHUNKS_A_UNIT)]
    parts = [
        np.frombuffer(unit, np.float32, offset=8).reshape(count, -1)
        for unit, count in zip(made, counts, strict=True)
    ]
    return joined(parts), seconds


def joined(parts: Sequence[Vectors]) -> Vectors:
    """The rows of all units; where the last has fewer scores they are NaN."""
    width = max(part.shape[1] for part in parts)
    wide = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan) for part in parts]
    return np.concatenate(wide)


def rows(model: Embedder, part: Tokens, progress: Progress | None = None) -> Vectors:
    """Of each chunk of a unit its embedding [n, width], or its scores as a query for them all [n, n]."""
    made = []
    for chunk in part:
        scores = [model.score(chunk, other) for other in part] if model.ranks else None
        made.append(model.embed(chunk) if scores is None else np.array(scores, np.float32))
        if progress is not None:
            progress.add(1)
    return np.stack(made)


@dataclass(frozen=True)
class Compared:
    """What a file changes, text by text: its `distance` [n] from the source; of those texts that others are
    ranked for, by the angle of their embeddings or by score, Spearman's correlation `rank` of the two orders,
    and whether both put the `same_first`.
    """

    distance: Numbers
    rank: Numbers
    same_first: Numbers


def compare(ours: Vectors, theirs: Vectors, *, ranks: bool, where: Path) -> Compared:
    """The vectors of a file beside the source's; `where` names it in errors."""
    if ours.shape != theirs.shape:
        what = f"gives {ours.shape[1]} values for a text, the source {theirs.shape[1]}"
        raise QuantmillError(what, where, "compare it with the model that it was made from")
    if ranks:
        if not np.nanvar(theirs, dtype=np.float64) > 0:
            what = "the source gives every document of the corpus the same score"
            raise QuantmillError(what, where, "take another corpus: nothing can be ranked by this one")
        orders = [
            (a[~np.isnan(b)], b[~np.isnan(b)])
            for a, b in zip(ours, theirs, strict=True)
            if (~np.isnan(b)).sum() >= LEAST_RANKED
        ]
    else:
        mine, its = _units_of(ours), _units_of(theirs)
        others = ~np.eye(len(mine), dtype=bool)
        pairs = zip(mine @ mine.T, its @ its.T, others, strict=True)
        orders = [(a[but_itself], b[but_itself]) for a, b, but_itself in pairs]
    return Compared(
        distance(ours, theirs, ranks=ranks),
        np.array([_spearman(a, b) for a, b in orders]),
        np.array([float(a.argmax() == b.argmax()) for a, b in orders]),
    )


def distance(ours: Vectors, theirs: Vectors, *, ranks: bool) -> Numbers:
    """The distance [n] of each embedding: 1 less the cosine, half the squared difference of unit vectors. Of
    scores half their mean squared difference, in units of the variance of the source's. So both are half the
    share of what a file gets wrong.
    """
    if not ranks:
        return np.asarray(((_units_of(ours) - _units_of(theirs)) ** 2).sum(axis=1) / 2)
    squares = (ours.astype(np.float64) - theirs) ** 2
    return np.asarray(np.nanmean(squares, axis=1) / (2 * np.nanvar(theirs, dtype=np.float64)))


def _units_of(vectors: Vectors) -> Numbers:
    """The same [n, width] with a length of 1; a vector of zeros stays one."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1)


def _spearman(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Spearman's rank correlation; values that are equal stand in their order, in both alike."""
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (a, b)]
    n = len(a)
    return float(1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (n * (n * n - 1)))


def describe(compared: Compared) -> Described:
    """The statistics over the texts, and the value of each."""
    return {
        "distance": distribution(compared.distance),
        "rank": mean(compared.rank),
        "same_first": mean(compared.same_first),
        "by_chunk": {
            "distance": compared.distance.tolist(),
            "rank": compared.rank.tolist(),
            "same_first": compared.same_first.tolist(),
        },
    }


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `measure.embeddings`."""
    config: Chunks = args.spec["config"]
    engine = args.spec["engine"]
    chunks = load_chunks(args.corpus, config)
    sha256 = {"model": model_sha256(args.facts), "reference": model_sha256(args.reference_facts)}
    models = {
        name: Model(path, {"engine": engine, "model": sha256[name]}, read_header(path, data=False))
        for name, path in (("model", args.model), ("reference", args.reference))
    }
    store = command.store(args, log)
    mine = shared(chunks, args.shard)
    theirs, spent = measure(models["reference"], mine, threads=args.threads, store=store, log=log)
    if sha256["model"] == sha256["reference"]:
        ours, seconds = theirs, spent
    else:
        ours, seconds = measure(models["model"], mine, threads=args.threads, store=store, log=log)
    if args.shard is not None:
        return
    pooling = pooling_of(models["reference"].header)
    compared = compare(ours, theirs, ranks=pooling == "rank", where=args.model)
    facts = {
        "corpus": config["corpus"],
        "chunks": len(chunks),
        "context": config["context"],
        "pooling": pooling,
        "values": 1 if pooling == "rank" else theirs.shape[1],
        "texts": len(chunks) if pooling != "rank" else int((~np.isnan(theirs)).sum()),
        "seconds": round(seconds, 3),
        "model_sha256": sha256["model"],
        "reference_sha256": sha256["reference"],
    }
    written = cast(Embeddings, {**facts, **describe(compared)})
    if places := noted(store, STAGE, models["model"].identity):
        written["devices"] = places
    EMBEDDINGS.write(args.out, written)
    value = f"{written['distance']['mean']:.3g} +/- {written['distance']['error']:.2g}"
    log.say(
        f"distance {value}, rank correlation {written['rank']['mean']:.4f}; "
        f"{store.made} units made, {store.reused} reused"
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True, evaluates=True, shards=True)
    arguments.add_argument("--model", type=Path, required=True, help="the GGUF to measure")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--reference", type=Path, required=True, help="the GGUF to compare it with")
    arguments.add_argument("--reference-facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--corpus", type=Path, required=True, help="token chunks (parquet)")
    arguments.add_argument("--out", type=Path, required=True, help="embeddings.json")
    command.run(arguments, main)
