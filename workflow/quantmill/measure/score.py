"""Chunks through the engine, and what the model made of them.

llama-perplexity's method: chunks of `context` tokens without overlap, a BOS in
place of the first where the vocabulary adds one, and of each chunk the second
half is scored: at positions context/2 ... context-2 the next token's negative
log likelihood, so that every prediction has half a window behind it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import library, loader
from quantmill.engine.evaluator import Evaluator, Tokens
from quantmill.errors import QuantmillError
from quantmill.formats.chunks import read_chunks
from quantmill.formats.settings import CHUNKS_A_UNIT, Chunks
from quantmill.measure.saved import Saved
from quantmill.measure.without_mtp import evaluable
from quantmill.offload import chosen
from quantmill.progress import Log, Progress
from quantmill.shards import Shard
from quantmill.stages import VERSIONS
from quantmill.store import Identity, Store

if TYPE_CHECKING:  # whichever engine is imported is the one that the process uses
    from quantmill.engine import mainline
    from quantmill.engine.mainline import Observer

_ROWS_A_BLOCK = 32
BATCH: Final = 512
"""Tokens that are evaluated at once, where a run does not want more."""

Result = TypeVar("Result")


@contextmanager
def loaded(path: Path, *, context: int, batch: int, threads: int, sequences: int = 1) -> Iterator[Evaluator]:
    """The GGUF in the engine of this process, what its evaluation does not use left out where it must."""
    with (
        evaluable(path) as file,
        loader.load(file, context=context, batch=batch, threads=threads, sequences=sequences) as model,
    ):
        yield model


def observed(
    stage: str,
    what: str,
    path: Path,
    chunks: Tokens,
    observe: Observer,
    identity: Identity,
    make: Callable[[mainline.Evaluator, Tokens, Saved, Progress], bytes],
    *,
    threads: int,
    store: Store,
    log: Log,
    batch: int | None = None,
) -> Iterator[bytes | memoryview]:
    """The `units` of a run over `chunks` [n, context] that `observe` watches, under the name `what`.

    `make(model, part, saved, progress)` makes one; the model is loaded only if one is missing. `batch` is the
    most tokens that are evaluated at once; default: 512.
    """
    from quantmill.engine import mainline

    context = chunks.shape[1]
    with ExitStack() as stack:

        @cache
        def model() -> mainline.Evaluator:
            sequences = sequences_of(context)
            size = context * sequences if sequences > 1 else min(batch or BATCH, context)
            made = mainline.Evaluator(
                path, context=context, batch=size, threads=threads, sequences=sequences, observe=observe
            )
            stack.enter_context(made).reserve()
            return made

        progress = stack.enter_context(log.progress(what, len(chunks), "chunks"))
        yield from units(
            stage, chunks, identity, store, progress, lambda part, saved: make(model(), part, saved, progress)
        )


def batch_of(context: int, *, whole: bool) -> int:
    """Tokens that are evaluated at once, so that a chunk is cut evenly: what is left of it at the end would
    have too few rows to be collected. `whole` chunks are not cut, whatever their length.
    """
    return context if whole else -(-context // -(-context // BATCH))


def load_chunks(path: Path, config: Chunks) -> Tokens:
    """The first token chunks [chunks, context] of a corpus. QuantmillError where it holds too few."""
    chunks, _ = read_chunks(path, 0, config["chunks"])
    if chunks.shape != (config["chunks"], config["context"]):
        had, expected = (
            "{} chunks of {} tokens".format(*chunks.shape),
            f"{config['chunks']} of {config['context']}",
        )
        raise QuantmillError(f"holds {had}, not {expected}", path, "delete it to have it made again")
    return chunks


def units(
    stage: str,
    chunks: Tokens,
    identity: Identity,
    store: Store,
    progress: Progress,
    make: Callable[[Tokens, Saved], bytes],
) -> Iterator[bytes | memoryview]:
    """The units of a run over `chunks` [n, context], in order, from the store or made by `make(part, saved)`,
    which reports the progress of its chunks itself, and goes on from what was saved.

    `identity` is what, beside the tokens, determines the result. The cuts are
    the same whatever the total, so that more chunks use the units of fewer.
    """
    store.expect(unit_key(stage, part, identity) for part in cut(chunks))
    for part in cut(chunks):
        key = unit_key(stage, part, identity)
        saved = Saved(store, key)
        begun = False

        def begin(part: Tokens = part, saved: Saved = saved) -> bytes:
            nonlocal begun
            begun = True
            return make(part, saved)

        yield store.get_or_make(key, begin, leased=True)
        saved.finished()
        if not begun:
            progress.reuse(len(part))


def shared(chunks: Tokens, shard: Shard | None) -> Tokens:
    """The chunks [n, context] of a shard's units: cut alike, they are the same units as of all chunks."""
    return chunks if shard is None else np.concatenate([chunks[:0], *shard.of(cut(chunks))])


def cut(chunks: Tokens) -> list[Tokens]:
    """The chunks [n, context] of each unit."""
    return [chunks[first : first + CHUNKS_A_UNIT] for first in range(0, len(chunks), CHUNKS_A_UNIT)]


def unit_key(stage: str, part: Tokens, identity: Identity) -> str:
    """The key of a unit of `stage`: its chunks [n, context], and what else determines it."""
    tokens = hashlib.sha256(part.astype("<i4").tobytes()).hexdigest()
    return Store.key(stage, VERSIONS[stage], tokens=tokens, shape=list(part.shape), **identity)


def with_bos(chunk: Tokens, bos: int | None) -> Tokens:
    """A chunk [context], or several [n, context], as evaluated: the first token replaced by the BOS, where
    there is one.
    """
    chunk = chunk.copy()
    if bos is not None:
        chunk[..., 0] = bos
    return chunk


class Softmax:
    """The softmax of rows of logits [n, vocabulary], f32.

    `top` [n, 1] is each row's largest logit, `exps` exp(logits - top), `sums` [n] their sums.
    All that is made from a row is made from these same numbers in the same
    order, so that a model compared with itself differs by exactly nothing.
    """

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.logits = logits
        self.top = logits.max(axis=1, keepdims=True)
        self.exps = logits - self.top
        np.exp(self.exps, out=self.exps)
        self.sums = self.exps.sum(axis=1)
        self.log_sums = np.log(self.sums)

    def log_probabilities(self, rows: NDArray[np.integer], ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """ln p of the tokens `ids`, each under its row; both of one shape."""
        return self.logits[rows, ids] - self.top[rows, 0] - self.log_sums[rows]

    def all_log_probabilities(self) -> NDArray[np.float32]:
        """ln p [n, vocabulary] of every token."""
        return self.logits - self.top - self.log_sums[:, None]


def in_blocks(
    count: int, pool: Executor, work: Callable[[slice], Result], rows: int = _ROWS_A_BLOCK
) -> list[Result]:
    """`work` on slices of `count` rows that stay in the cache, over the pool's threads; in order."""
    starts = range(0, count, rows)
    return list(pool.map(lambda start: work(slice(start, min(start + rows, count))), starts))


def nll(logits: NDArray[np.float32], targets: Tokens, pool: ThreadPoolExecutor) -> NDArray[np.float32]:
    """Negative log likelihood (nats) of each of the targets [n] under its row of logits [n, vocabulary]."""

    def block(part: slice) -> NDArray[np.float32]:
        tokens = targets[part]
        return -Softmax(logits[part]).log_probabilities(np.arange(len(tokens)), tokens)

    return np.concatenate(in_blocks(len(targets), pool, block))


def parts(context: int, batch: int) -> Iterator[tuple[slice, int, slice]]:
    """A chunk in batches: the tokens, the first of them that is scored, the targets of those scored."""
    half = context // 2
    for start in range(0, context, batch):
        stop = min(start + batch, context)
        scored = min(max(half, start), stop)
        yield slice(start, stop), scored - start, slice(scored + 1, stop + 1 if stop < context else stop)


def sequences_of(context: int) -> int:
    """How many chunks of so many tokens are evaluated side by side: as many as the run's batch holds."""
    return 1 if library.in_use() == "ik" else max(1, chosen().batch // context)


def loaded_to_score(path: Path, context: int, threads: int) -> AbstractContextManager[Evaluator]:
    """The GGUF with room for chunks of `context` tokens, as many side by side as the run wants."""
    sequences = sequences_of(context)
    batch = context * sequences if sequences > 1 else min(chosen().batch or BATCH, context)
    return loaded(path, context=context, batch=batch, threads=threads, sequences=sequences)


def groups(part: Tokens, model: Evaluator) -> Iterator[Tokens]:
    """The chunks [n, context] of a unit in groups that the model evaluates side by side, with its BOS."""
    for first in range(0, len(part), model.sequences):
        yield with_bos(part[first : first + model.sequences], model.bos)


def predictions(
    model: Evaluator, chunks: Tokens, progress: Progress
) -> Iterator[tuple[NDArray[np.float32], Tokens]]:
    """The scored predictions of chunks [n, context] side by side, at most 512 of one chunk at a time: logits
    [rows, vocabulary], valid until the next evaluation, and the tokens [rows] that came.
    """
    model.clear()
    at_once = model.batch // len(chunks)
    with counted(progress, model, chunks):
        for tokens, first, targets in parts(chunks.shape[1], at_once):
            model.decode(chunks[:, tokens], tokens.start, first)
            scored, rows = chunks[:, targets], tokens.stop - tokens.start - first
            if scored.size:
                logits = model.logits(rows * len(chunks)).reshape(len(chunks), rows, -1)
                for own, came in zip(logits, scored, strict=True):
                    for piece in _pieces(tokens.start + first, len(came)):
                        yield own[piece], came[piece]


def _pieces(first: int, count: int) -> Iterator[slice]:
    """The predictions of `count` positions from `first` on, cut where 512 tokens end: however many are
    evaluated at once, the pieces are the same.
    """
    cuts = [at - first for at in range(-(-(first + 1) // BATCH) * BATCH, first + count, BATCH)]
    yield from (slice(start, stop) for start, stop in pairwise([0, *cuts, count]))


@contextmanager
def counted(progress: Progress, model: Evaluator, chunks: Tokens) -> Iterator[None]:
    """Count chunks [n, context] as done at the end of the block, and parts of them as the model computes."""
    done = 0.0

    def tick(tokens: float) -> None:
        nonlocal done
        part = tokens / chunks.shape[1]
        done += part
        progress.add(part)

    model.tick = tick
    try:
        yield
    finally:
        model.tick = None
    progress.add(len(chunks) - done)


class PerplexityError(TypedDict):
    """A perplexity with its error."""

    perplexity: float
    error: float


def perplexity(values: NDArray[np.float32]) -> PerplexityError:
    """Perplexity of the nll of n tokens, and its error.

    exp(m) and exp(m) * sqrt((mean of squares - m^2) / (n - 1)), with m the mean
    nll, as llama-perplexity prints them. QuantmillError where a prediction is not finite.
    """
    if not np.isfinite(values).all():
        raise QuantmillError(
            "the model's predictions are NaN or infinite",
            cure="it is damaged, or overflows: take another file of it",
        )
    nats = values.astype(np.float64)
    mean = float(nats.mean())
    variance = max(0.0, float((nats**2).mean()) - mean**2)
    value = math.exp(mean)
    return {"perplexity": value, "error": value * math.sqrt(variance / (len(nats) - 1))}
