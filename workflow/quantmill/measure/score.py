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
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantmill.corpus.chunks import read_chunks
from quantmill.engine.mainline import Evaluator, Tokens
from quantmill.errors import QuantmillError
from quantmill.progress import Progress
from quantmill.store import Store
from quantmill.versions import VERSIONS

# Chunks of a unit of the store: what a killed run repeats at most.
CHUNKS_A_UNIT = 8

_ROWS_A_BLOCK = 32


def load_chunks(path: Path, config: dict[str, Any]) -> Tokens:
    """The first token chunks [chunks, context] of a corpus. QuantmillError where it holds too few."""
    chunks, _ = read_chunks(path, 0, config["chunks"])
    if chunks.shape != (config["chunks"], config["context"]):
        had, wanted = (
            "{} chunks of {} tokens".format(*chunks.shape),
            f"{config['chunks']} of {config['context']}",
        )
        raise QuantmillError(f"holds {had}, not {wanted}", path, "delete it to have it made again")
    return chunks


def units(
    stage: str,
    chunks: Tokens,
    identity: dict[str, Any],
    store: Store,
    progress: Progress,
    make: Callable[[Tokens], bytes],
) -> Iterator[bytes | memoryview]:
    """The units of a run over `chunks` [n, context], in order, from the store or made by `make(part)`,
    which reports the progress of its chunks itself.

    `identity` is what, beside the tokens, determines the result. The cuts are
    the same whatever the total, so that more chunks use the units of fewer.
    """
    for first in range(0, len(chunks), CHUNKS_A_UNIT):
        part = chunks[first : first + CHUNKS_A_UNIT]
        tokens = hashlib.sha256(part.astype("<i4").tobytes()).hexdigest()
        key = Store.key(stage, VERSIONS[stage], tokens=tokens, shape=list(part.shape), **identity)
        reused = store.reused
        yield store.get_or_make(key, partial(make, part))
        progress.add((store.reused - reused) * len(part))


def with_bos(chunk: Tokens, bos: int | None) -> Tokens:
    """The chunk as it is evaluated: its first token replaced by the BOS, where there is one."""
    chunk = chunk.copy()
    if bos is not None:
        chunk[0] = bos
    return chunk


def nll(logits: NDArray[np.float32], targets: Tokens, pool: ThreadPoolExecutor) -> NDArray[np.float32]:
    """Negative log likelihood (nats) of each of the targets [n] under its row of logits [n, vocabulary].

    The softmax's sum is taken in blocks of rows that stay in the cache, over the pool's threads.
    """
    out = np.empty(len(targets), np.float32)

    def block(first: int) -> None:
        rows = logits[first : first + _ROWS_A_BLOCK][: len(targets) - first]
        top = rows.max(axis=1, keepdims=True)
        shifted = rows - top
        wanted = shifted[np.arange(len(rows)), targets[first : first + len(rows)]]
        np.exp(shifted, out=shifted)
        out[first : first + len(rows)] = np.log(shifted.sum(axis=1)) - wanted

    list(pool.map(block, range(0, len(targets), _ROWS_A_BLOCK)))
    return out


def parts(context: int, batch: int) -> Iterator[tuple[slice, int, slice]]:
    """A chunk in batches: the tokens, the first of them that is scored, the targets of those scored."""
    half = context // 2
    for start in range(0, context, batch):
        stop = min(start + batch, context)
        scored = min(max(half, start), stop)
        yield slice(start, stop), scored - start, slice(scored + 1, stop + 1 if stop < context else stop)


def score_chunk(model: Evaluator, chunk: Tokens, batch: int, pool: ThreadPoolExecutor) -> NDArray[np.float32]:
    """nll [context/2 - 1] of the second half of a chunk [context], evaluated `batch` tokens at a time."""
    found = []
    model.clear()
    for tokens, first, targets in parts(len(chunk), batch):
        model.decode(chunk[tokens], tokens.start, first)
        rows = tokens.stop - tokens.start - first
        if rows:
            found.append(nll(model.logits(rows), chunk[targets], pool))
    return np.concatenate(found)


def perplexity(values: NDArray[np.float32]) -> dict[str, float]:
    """Perplexity of the nll of n tokens, and its error.

    exp(m) and exp(m) * sqrt((mean of squares - m^2) / (n - 1)), with m the mean
    nll, as llama-perplexity prints them.
    """
    nats = values.astype(np.float64)
    mean = float(nats.mean())
    variance = max(0.0, float((nats**2).mean()) - mean**2)
    value = math.exp(mean)
    return {"perplexity": value, "error": value * math.sqrt(variance / (len(nats) - 1))}
