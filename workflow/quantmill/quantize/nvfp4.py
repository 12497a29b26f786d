"""Tensors to NVFP4 with their per-tensor scales, as modelopt chooses them.

The scale of a weight is the largest magnitude of all weights that share it,
over 6 x 448, and of experts each has its own; what is left is quantized by the
same arithmetic as checkpoints are, not by ggml's, which knows no per-tensor scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.ggml import Bytes, Conversion
from quantmill.errors import QuantmillError
from quantmill.nvfp4 import gguf, values

Floats = NDArray[np.float32]

_PLAIN = {"f16": "F16", "bf16": "BF16", "f32": "F32"}


@dataclass(frozen=True)
class Weight:
    """A weight of the source: `sha256` is of its data, `shape` has the row's width first.

    `data` gets its bytes: a plan's weights are all listed, and few of them held at once.
    """

    name: str
    sha256: str
    type: str
    shape: tuple[int, ...]
    data: Callable[[], Bytes]


def largest(weight: Weight, pool: Executor, threads: int) -> Floats:
    """The largest magnitude of each matrix [matrices]; QuantmillError where a value is not finite."""
    magnitudes = [values.largest(bits, dtype, pool) for bits, dtype in _matrices(weight, pool, threads)]
    if None in magnitudes:
        raise QuantmillError("has values that are not finite", weight.name, "the source is broken")
    return np.array(magnitudes, np.float32)


def scales(largest: list[Floats]) -> Floats:
    """The scales [matrices] of weights that share them, by the largest magnitudes of each weight."""
    return np.array([values.tensor_scale(float(amax)) for amax in np.max(largest, axis=0)], np.float32)


def quantize(weight: Weight, scales: Floats, pool: Executor, threads: int) -> Bytes:
    """The weight's blocks as a GGUF holds them, to be multiplied by `scales` [matrices]."""
    matrices = zip(_matrices(weight, pool, threads), scales, strict=True)
    return np.concatenate(
        [gguf.packed(*values.quantize(bits, dtype, scale, pool)) for (bits, dtype), scale in matrices]
    )


def _matrices(weight: Weight, pool: Executor, threads: int) -> Iterator[tuple[values.Bits, str]]:
    """Each matrix [rows, columns] as bits, with its dtype; of a quantized source as float32."""
    columns, rows, matrices = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
    for data in np.split(weight.data(), matrices):
        kind = weight.type
        if kind not in _PLAIN:
            shape = columns, rows
            data = Conversion(pool, threads, data, kind, "f32", shape, None).result()
            kind = "f32"
        yield values.as_bits(data, _PLAIN[kind], (rows, columns)), _PLAIN[kind]
