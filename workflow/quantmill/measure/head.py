"""The importance matrix of the draft head: what enters it beside the model's own text.

At each position the head gets the token there and the model's last hidden state of the position before, as
llama.cpp's server gives them; the first has no state, all zeros. All tokens ask for logits, so that no
architecture leaves rows of its last multiplications out.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import numpy as np

from quantmill.engine.evaluator import Tokens
from quantmill.engine.mtp import Head
from quantmill.measure.collect import Collector, Shard
from quantmill.measure.saved import Saved
from quantmill.measure.score import batch_of, units, with_bos
from quantmill.progress import Log
from quantmill.store import Identity, Store

PART: Final[Identity] = {"part": "mtp"}


def measure(
    stage: str, path: Path, chunks: Tokens, *, identity: Identity, threads: int, store: Store, log: Log
) -> Shard:
    """The sums of the head's tensors over all chunks [n, context], from the units of `stage` in the store."""
    context = chunks.shape[1]
    collector = Collector()
    merged: Shard | None = None
    loaded: list[Head] = []

    def make(part: Tokens, _: Saved) -> bytes:
        if not loaded:
            batch = batch_of(context, whole=False)
            loaded.append(Head(path, context=context, batch=batch, threads=threads, observe=collector))
        start = time.monotonic()
        collector.sums, collector.leader = {}, {}
        for chunk in with_bos(part, loaded[0].bos):
            _evaluate(loaded[0], collector, chunk)
            progress.add(1)
        seconds = time.monotonic() - start
        return Shard(collector.sums, collector.leader, np.empty(0, np.float32), seconds).to_bytes()

    try:
        with log.progress("imatrix of the draft head", len(chunks), "chunks") as progress:
            for unit in units(stage, chunks, {**identity, **PART}, store, progress, make):
                shard = Shard.from_bytes(unit)
                if merged is None:
                    merged = shard
                else:
                    merged.add(shard)
    finally:
        for model in loaded:
            model.__exit__(None, None, None)
    assert merged is not None
    return merged


def _evaluate(model: Head, collector: Collector, chunk: Tokens) -> None:
    """A chunk [context] through the model and each of its heads."""
    model.clear()
    before = np.zeros((1, model.width), np.float32)
    kept = []
    for first in range(0, len(chunk), model.batch):
        tokens = chunk[first : first + model.batch]
        kept.append(model.states(tokens, first))
    states = np.concatenate([before, *kept])[:-1]
    for head in range(model.heads):
        for first in range(0, len(chunk), model.batch):
            rows = slice(first, first + model.batch)
            collector.begin(head=True)
            model.predict(chunk[rows], states[rows], first, head)
