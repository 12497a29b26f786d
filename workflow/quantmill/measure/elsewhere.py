"""The noise between devices: what the source predicts on the CPU, beside its predictions on a GPU.

A source that fits no GPU is evaluated partly on the CPU, its small files wholly on the GPU. Both round
differently in the last bits, and no divergence is known better than to that.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from quantmill.engine.evaluator import Tokens
from quantmill.formats.measurements import Elsewhere
from quantmill.measure import reference
from quantmill.measure.reference import Values, compare
from quantmill.measure.score import cut, groups, predictions, unit_key
from quantmill.measure.without_mtp import evaluable
from quantmill.progress import Log
from quantmill.store import Identity, Store

_CHUNKS: Final = 1
_BATCH: Final = 512


def on_cpu(
    path: Path, chunks: Tokens, identity: Identity, *, threads: int, store: Store, log: Log
) -> Elsewhere | None:
    """The divergence, on the first of `chunks` [n, context], of the source on the CPU from its stored
    predictions; a unit of the store. None where the store has lost these.
    """
    part = cut(chunks)[0]
    stored = store.get(unit_key(reference.STAGE, part, identity))
    if stored is None:
        return None
    key = unit_key(reference.STAGE, part[:_CHUNKS], {**identity, "device": "CPU"})
    unit = store.get_or_make(key, partial(_measured, path, part, stored, threads, log))
    measured: Elsewhere = json.loads(bytes(unit))
    return measured


def _measured(path: Path, part: Tokens, stored: bytes | memoryview, threads: int, log: Log) -> bytes:
    from quantmill.engine.mainline import Evaluator

    context = part.shape[1]
    pieces = iter(reference.from_bytes(stored))
    with (
        ThreadPoolExecutor(threads) as pool,
        evaluable(path) as file,
        Evaluator(file, context=context, batch=min(_BATCH, context), threads=threads, gpus=False) as model,
        log.progress("the source on the CPU", _CHUNKS, "chunks") as progress,
    ):
        compared = [
            compare(logits, targets, next(pieces), pool)
            for group in groups(part[:_CHUNKS], model)
            for logits, targets in predictions(model, group, progress)
        ]
    kld = Values.joined(compared).kld
    measured: Elsewhere = {"chunks": _CHUNKS, "mean": float(np.mean(kld)), "max": float(np.max(kld))}
    return json.dumps(measured).encode()
