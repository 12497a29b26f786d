"""The error table: what quantizing costs a tensor's own values, weighed by the importance matrix.

The error of a tensor at a type is the sum over its elements of w (q - x)^2
over that of w x^2, with x the source's values, q the quantized ones and w the
importance of the element's column (1 where there is none). Its bias is the sum
of w x (q - x) over the same: by how much the type shrinks or stretches the
tensor as a whole, so that error = noise + bias^2. Of large tensors a sample of
rows is taken.
"""

from __future__ import annotations

import hashlib
import json
import math
from concurrent.futures import Executor
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.ggml import Bytes, Conversion
from quantmill.model.types import row_bytes
from quantmill.quantize.kernels import Quantizer
from quantmill.sensitivity.choices import Choice
from quantmill.store import Store

SAMPLED_ABOVE: Final = 1 << 22
"""Tensors of more elements than this are sampled."""

_SAMPLE: Final = 1 << 20  # elements, about
_ROWS_AT_LEAST: Final = 2  # of each matrix


class Error(NamedTuple):
    """The error of a choice, its standard error (0 where no row was left out), and the bias in it."""

    error: float
    se: float
    bias: float


def error(choice: Choice, source: Bytes, quantizer: Quantizer, pool: Executor, version: int) -> Error:
    """The error of a choice: a unit of the store, made on the pool's threads if missing.

    `source` is the tensor's data. A tensor taken whole is quantized through the
    store, as files will be; of a sampled one the figures alone are kept.
    """
    if choice.kept:
        return Error(0.0, 0.0, 0.0)
    weights = choice.importance
    key = Store.key(
        "sensitivity.errors", version, quantized=choice.task.key(quantizer.engine),
        importance=None if weights is None else hashlib.sha256(weights.tobytes()).hexdigest(),
        sampled_above=SAMPLED_ABOVE,
    )  # fmt: skip

    def make() -> bytes:
        return json.dumps(_measure(choice, source, quantizer, pool)).encode()

    return Error(*json.loads(bytes(quantizer.store.get_or_make(key, make))))


def sample(shape: tuple[int, ...], name: str) -> NDArray[np.int64] | None:
    """The rows [matrices, n] of a tensor that are drawn, as many of each matrix; None for all of them.

    Drawn at random, by a seed that the tensor's name gives: rows have periods (heads).
    """
    rows, matrices = shape[1], math.prod(shape[2:])
    if math.prod(shape) <= SAMPLED_ABOVE:
        return None
    count = min(rows, max(_ROWS_AT_LEAST, -(-_SAMPLE // (shape[0] * matrices))))
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
    return np.stack([m * rows + np.sort(random.permutation(rows)[:count]) for m in range(matrices)])


def relative_error(
    values: NDArray[np.float32],
    quantized: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
    rows: int,
) -> Error:
    """The error of quantized values [matrices, n, columns], which may be a sample of `rows` rows in all.

    `weights` [matrices, columns]. The error is a ratio of two sums over rows; its
    standard error is the usual one of a ratio under sampling without replacement.
    """
    w = np.ones((len(values), values.shape[2]), np.float32) if weights is None else weights
    change = quantized - values
    energy, lost, along = (
        np.einsum("mrc,mrc,mc->mr", one, other, w, dtype=np.float64).reshape(-1)
        for one, other in ((values, values), (change, change), (values, change))
    )
    total, drawn = float(energy.sum()), len(energy)
    if total == 0:
        return Error(0.0, 0.0, 0.0)
    ratio, bias = float(lost.sum()) / total, float(along.sum()) / total
    left = 1 - drawn / rows
    spread = float(((lost - ratio * energy) ** 2).sum()) / max(1, drawn - 1)
    return Error(ratio, math.sqrt(left * drawn * spread) / total, bias)


def _measure(choice: Choice, source: Bytes, quantizer: Quantizer, pool: Executor) -> Error:
    task, shape = choice.task, choice.row.shape
    rows, picked = math.prod(shape[1:]), sample(shape, choice.name)
    threads = quantizer.threads
    if picked is None:
        data = np.frombuffer(quantizer.start(task, source)(), np.uint8)
    else:
        width = row_bytes(task.source_type, shape[0])
        source = source.reshape(rows, width)[picked.reshape(-1)].reshape(-1)
        shape = (shape[0], picked.shape[1], picked.shape[0])
        data = Conversion(pool, threads, source, task.source_type, task.type, shape, task.importance).result()
    matrices = math.prod(shape[2:])
    values, quantized = (
        Conversion(pool, threads, part, kind, "f32", shape, None)
        .result()
        .view(np.float32)
        .reshape(matrices, shape[1], shape[0])
        for part, kind in ((source, task.source_type), (data, task.type))
    )
    return relative_error(values, quantized, choice.importance, rows)
