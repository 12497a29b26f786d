"""The error table: how much quantizing changes a tensor's own values, weighted by the importance matrix.

And the error that rounding the tensor's input adds. A probe does not see it: it replaces weights alone.

The error of a tensor at a type is the sum over its elements of w (q - x)^2,
divided by the sum of w x^2. Here x are the source's values, q the quantized
ones, and w is the importance of the element's column (1 where there is none).
Of a tensor that is rounded with error feedback it is the sum over its rows of
(q - x) H (q - x)', divided by that of x H x', with the second moments H of its input.
The bias is the sum of w x (q - x), divided by the same sum: by how much the type
shrinks or stretches the tensor as a whole. So error = noise + bias^2. Of large
tensors a sample of rows is taken.

A quantized weight is multiplied by activations that are rounded to 8 bits. The
blocks of the rounding are as long as those of the type: 256 for k- and i-quants
(Q8_K), 32 for the others (Q8_0, Q8_1). The step is the block's largest magnitude
over 127. On the same scale, the error of rounding is the sum over rows i and
columns j of W_ij^2 E[r_j^2], divided by the sum of W_ij^2 E[x_j^2], with x the
input and r what rounding changes of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.ggml import Bytes, Conversion
from quantmill.engine.graph import MatMul
from quantmill.formats.types import is_quantized, known, row_bytes
from quantmill.quantize.kernels import LEASED_BYTES, Quantizer
from quantmill.sensitivity.candidates import Choice
from quantmill.store import Store

SAMPLED_ABOVE: Final = 1 << 22
"""Tensors of more elements than this are sampled."""

_SAMPLE: Final = 1 << 20  # elements, about
_ROWS_AT_LEAST: Final = 2  # of each matrix
_BLOCKS: Final = (32, 256)  # in which activations are rounded
_STEPS: Final = np.float32(127)
_TINY: Final = np.finfo(np.float32).tiny


class Error(NamedTuple):
    """The error of a choice, its standard error (0 where all rows were taken), and its bias."""

    error: float
    se: float
    bias: float


def error(choice: Choice, source: Bytes, quantizer: Quantizer, pool: Executor, version: int) -> Error:
    """The error of a choice: a unit of the store, made on the pool's threads if missing.

    `source` is the tensor's data. A tensor that is taken whole is quantized
    through the store, so that files use it again. Of a sampled one only the
    figures are stored.
    """
    if choice.unchanged:
        return Error(0.0, 0.0, 0.0)
    weights = choice.importance
    key = Store.key(
        "sensitivity.errors",
        version,
        quantized=choice.task.key(quantizer.engine),
        importance=None if weights is None else hashlib.sha256(weights.tobytes()).hexdigest(),
        sampled_above=SAMPLED_ABOVE,
    )

    def make() -> bytes:
        return json.dumps(_measure(choice, source, quantizer, pool)).encode()

    return Error(
        *json.loads(bytes(quantizer.store.get_or_make(key, make, leased=choice.row.bytes >= LEASED_BYTES)))
    )


def sample(shape: tuple[int, ...], name: str) -> NDArray[np.int64] | None:
    """The sampled rows [matrices, n] of a tensor, equally many of each matrix; None for all rows.

    They are random, as rows have periods (heads). The tensor's name gives the seed.
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
    means: Iterable[NDArray[np.float32]] | None = None,
) -> Error:
    """The error of quantized values [matrices, n, columns], all or a sample of `rows` rows.

    `weights` [matrices, columns]; in place of them `means`, of each matrix the mean second moments [blocks,
    width, width] of its input. The error is a ratio of two sums over rows; its standard error is the usual
    one of a ratio under sampling without replacement.
    """
    change = quantized - values
    pairs = (values, values), (change, change), (values, change)
    if means is None:
        w = np.ones((len(values), values.shape[2]), np.float32) if weights is None else weights
        energy, change_energy, along = (
            np.einsum("mrc,mrc,mc->mr", one, other, w, dtype=np.float64).reshape(-1) for one, other in pairs
        )
    else:
        costs = [_through(blocks, values[m], change[m]) for m, blocks in enumerate(means)]
        energy, change_energy, along = np.concatenate(costs, axis=1)
    total, drawn = float(energy.sum()), len(energy)
    if total == 0:
        return Error(0.0, 0.0, 0.0)
    ratio, bias = float(change_energy.sum()) / total, float(along.sum()) / total
    left = 1 - drawn / rows
    spread = float(((change_energy - ratio * energy) ** 2).sum()) / max(1, drawn - 1)
    return Error(ratio, math.sqrt(left * drawn * spread) / total, bias)


def _through(
    blocks: NDArray[np.float32], values: NDArray[np.float32], change: NDArray[np.float32]
) -> NDArray[np.float64]:
    """[3, rows]: v H v, c H c and v H c of rows v and c of `values` and `change` [rows, columns].

    H [blocks, width, width] is block-diagonal.
    """
    sums = np.zeros((3, len(values)))
    width = blocks.shape[1]
    for number, block in enumerate(blocks):
        own = slice(number * width, (number + 1) * width)
        v, c = values[:, own], change[:, own]
        through = c @ block
        sums += [np.vecdot(v @ block, v), np.vecdot(through, c), np.vecdot(through, v)]
    return sums


@dataclass
class Inputs:
    """An observer of the engine: the `moments` of the input of every weight, [3, columns], summed."""

    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def __call__(self, node: MatMul) -> bool:
        """See `MatMul`."""
        if not node.ask:
            rows = node.input().reshape(-1, node.input_shape[0])
            self.sums[node.weight] = self.sums.get(node.weight, 0.0) + moments(rows)
        return True


def moments(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """[3, columns] of rows [n, columns]: the sum of x^2, and that of r^2 for blocks of 32 and of 256.

    The latter is 0 where the columns are no whole blocks.
    """
    columns = rows.shape[1]
    sums = np.zeros((1 + len(_BLOCKS), columns))
    sums[0] = np.einsum("rc,rc->c", rows, rows, dtype=np.float64)
    for number, block in enumerate(_BLOCKS, start=1):
        if columns % block == 0:
            blocks = rows.reshape(len(rows), -1, block)
            step = np.maximum(np.abs(blocks).max(axis=2, keepdims=True) / _STEPS, _TINY)
            change = (np.rint(blocks / step) * step - blocks).reshape(rows.shape)
            sums[number] = np.einsum("rc,rc->c", change, change, dtype=np.float64)
    return sums


def rounding(
    sums: NDArray[np.float64], source: Bytes, kind: str, shape: tuple[int, ...], name: str, pool: Executor
) -> list[float]:
    """The error of rounding a tensor's input in blocks of 32 and of 256; `sums` are its `moments`."""
    source, shape = _sampled(source, kind, shape, name)
    values = Conversion(pool, 1, source, kind, "f32", shape, None).result().view(np.float32)
    values = values.reshape(-1, shape[0])
    total, *changes = (sums @ np.einsum("rc,rc->c", values, values, dtype=np.float64)).tolist()
    return [change / total if total else 0.0 for change in changes]


def added(rounded: Mapping[str, Sequence[float]], choice: Choice) -> float:
    """What rounding adds to a choice's error; 0 for embeddings (never multiplied) and unquantized types.

    `rounded` is by tensor, as from `rounding`.
    """
    if choice.name not in rounded or not is_quantized(choice.type):
        return 0.0
    return rounded[choice.name][known(choice.type).block_elements >= _BLOCKS[1]]


def _sampled(source: Bytes, kind: str, shape: tuple[int, ...], name: str) -> tuple[Bytes, tuple[int, ...]]:
    """The rows of a tensor's data that `sample` draws, and their shape."""
    picked = sample(shape, name)
    if picked is None:
        return source, shape
    rows, width = math.prod(shape[1:]), row_bytes(kind, shape[0])
    source = source.reshape(rows, width)[picked.reshape(-1)].reshape(-1)
    return source, (shape[0], picked.shape[1], picked.shape[0])


def _measure(choice: Choice, source: Bytes, quantizer: Quantizer, pool: Executor) -> Error:
    task, whole, threads = choice.task, choice.row.shape, quantizer.threads
    rows = math.prod(whole[1:])
    sampled, shape = _sampled(source, task.source_type, whole, choice.name)
    if sampled is source:
        data = np.frombuffer(quantizer.start(task, source)(), np.uint8)
    else:
        source = sampled
        data = quantizer.convert(task, source, shape)
    matrices = math.prod(shape[2:])
    values, quantized = (
        Conversion(pool, threads, part, kind, "f32", shape, None)
        .result()
        .view(np.float32)
        .reshape(matrices, shape[1], shape[0])
        for part, kind in ((source, task.source_type), (data, task.type))
    )
    return relative_error(values, quantized, choice.importance, rows, quantizer.means(task))
