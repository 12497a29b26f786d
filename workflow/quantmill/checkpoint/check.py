"""Reads an exported checkpoint back and holds it against its source: nothing is taken on trust.

Seen going wrong in other exports: experts silently zeroed, a head in the
exclude list and quantized all the same, weights only in name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from quantmill.checkpoint.forms import Form
from quantmill.checkpoint.modules import Part
from quantmill.checkpoint.safetensors import Bytes, Checkpoint, Tensor
from quantmill.errors import QuantmillError
from quantmill.formats.publication import QuantizedWeight
from quantmill.nvfp4 import values as nvfp4

# The root of summed squares is off by 0.095 for weights of a normal distribution, and by less
# than this for whatever a block of 16 can hold; only a tensor that a shared scale drowns has more.
ERROR_MAX = 0.3
_PIECE = 1 << 24


def check(
    form: Form,
    folder: Path,
    source: Checkpoint,
    parts: Iterable[Part],
    unchanged: list[Tensor],
    inputs: dict[str, float],
    pool: Executor,
    done: Callable[[int], None],
) -> list[QuantizedWeight]:
    """Names, dtypes, shapes, every byte that was to stay, and the error of every matrix that was not.

    Returns a row for each quantized matrix: module, shape, source dtype, and
    the relative error (root of summed squares), and of `inputs`, the largest
    magnitude that enters each, if there are any, its own. `done` takes the
    source bytes gone through. QuantmillError at the first difference.
    """
    made = Checkpoint(folder)
    parts = list(parts)
    expected, actual = (
        {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}
        for tensors in (
            [*unchanged, *(tensor for part in parts for tensor in form.outputs(part))],
            made.tensors.values(),
        )
    )
    for name in sorted(actual.keys() | expected.keys()):
        if actual.get(name) != expected.get(name):
            raise _wrong(f"is {actual.get(name)}, not {expected.get(name)}", name, folder)
    for tensor in unchanged:
        if not _same(made.data(made.tensors[tensor.name]), source.data(tensor)):
            raise _wrong("was to stay as it is and did not", tensor.name, folder)
        done(tensor.bytes)
    rows: list[QuantizedWeight] = []
    for part in parts:
        error = _error(form, made, source, part, pool)
        if not error <= ERROR_MAX:
            raise _wrong(f"has a relative error of {error:.3g} read back", part.module, folder)
        if form.activations and _input_scale(form, made, part) != form.input_scale(inputs[part.module]):
            raise _wrong("has not the input's scale that was calibrated", part.module, folder)
        row: QuantizedWeight = {
            "name": part.module,
            "role": part.module.rpartition(".")[2],
            "shape": [*part.shape],
            "dtype": part.tensor.dtype,
            "error": round(error, 6),
        }
        if form.activations:
            row["input"] = inputs[part.module]
        rows.append(row)
        done(part.bits(source).nbytes)
    return rows


def _same(one: Bytes, other: Bytes) -> bool:
    """Whether the bytes are equal, looked at in pieces: a comparison takes as much memory again."""
    return all(
        np.array_equal(one[start : start + _PIECE], other[start : start + _PIECE])
        for start in range(0, len(other), _PIECE)
    )


def _error(form: Form, made: Checkpoint, source: Checkpoint, part: Part, pool: Executor) -> float:
    codes, scales, scale = (made.data(made.tensors[tensor.name]) for tensor in form.outputs(part)[:3])
    codes, scales = (data.reshape(part.rows, -1) for data in (codes, scales))
    bits, dtype = part.bits(source), part.tensor.dtype
    return nvfp4.relative_error(bits, dtype, codes, scales, form.stored(scale.view(np.float32)[0]), pool)


def _input_scale(form: Form, made: Checkpoint, part: Part) -> np.float32:
    return np.float32(made.data(made.tensors[form.outputs(part)[3].name]).view(np.float32)[0])


def _wrong(what: str, name: str, folder: Path) -> QuantmillError:
    return QuantmillError(f"{name} {what}", folder, "no file was written; look at that tensor in the source")
