"""A model as quantization-aware training leaves it, for examples/grid.yaml: python examples/grids.py FOLDER

No such model is small enough for a repository. This rounds the matrices of tests/data/tiny-llama.gguf to the
grid of Q4_0, blocks of 32 with a scale that suits each, and stores the values as BF16. It was not trained so,
but its values lie where those of a trained one do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantmill.formats.ggufio import padded, read_header, serialize
from quantmill.formats.types import known

Floats = npt.NDArray[np.float32]

SOURCE = Path(__file__).parents[1] / "tests" / "data" / "tiny-llama.gguf"
_SHARES = (5.5, 6, 6.5, 7, 7.5, 8)


def to_q4_0(values: Floats) -> Floats:
    """The nearest values on the grid of Q4_0; of a few scales of each block the one with the least error."""
    blocks = values.reshape(-1, 32)
    best, least = np.zeros_like(blocks), np.full(len(blocks), np.inf)
    for share in _SHARES:
        scales = (np.abs(blocks).max(axis=1, keepdims=True) / share).astype(np.float16).astype(np.float32)
        levels = np.clip(np.rint(blocks / np.where(scales == 0, 1, scales)), -8, 7)
        rounded = (scales * levels).astype(np.float32)
        error = ((rounded - blocks) ** 2).sum(axis=1)
        best = np.where((error < least)[:, None], rounded, best)
        least = np.minimum(error, least)
    return best.reshape(values.shape)


def as_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """Values as BF16, rounded to nearest, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def write(target: Path, change: Callable[[Floats], Floats] = to_q4_0, source: Path = SOURCE) -> Path:
    """A copy of a model of F16 with its matrices changed and stored as BF16."""
    header, data = read_header(source), source.read_bytes()
    tensors, payloads = [], []
    for tensor in header.tensors:
        payload, kind = data[tensor.offset : tensor.offset + tensor.bytes], tensor.type
        if kind == "f16" and len(tensor.shape) > 1:
            values = np.frombuffer(payload, np.float16).astype(np.float32)
            payload, kind = as_bf16(change(values)).tobytes(), "bf16"
        tensors.append((tensor.name, known(kind).id, tensor.shape))
        payloads.append(payload.ljust(padded(len(payload)), b"\0"))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(serialize(header.kv, tensors) + b"".join(payloads))
    return target


if __name__ == "__main__":
    print(write(Path(sys.argv[1]) / "tiny-qat.gguf"))
