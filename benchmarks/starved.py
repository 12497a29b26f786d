"""How few tokens of an expert are too few: the error of quantizing it with other importance than the true.

    python benchmarks/starved.py MODEL TRUE.gguf FEW.gguf... --type q3_K --layers 1,3,5,7

TRUE is the model's imatrix of many chunks, the others are of few: experts' tensors
are quantized with each estimate of their importance, and the squared error of the
result, weighted by the true one, compared with what the true one itself gives.
docs/quality.md has the results on tiny-hybrid-moe.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "workflow"))

import gguf
import numpy as np
from numpy.typing import NDArray

from quantmill.engine import ggml
from quantmill.formats.ggufio import Tensor, read_header
from quantmill.formats.imatrix import Entry, read_gguf
from quantmill.model.roles import layer_of

CLASSES = (0, 1, 8, 16, 32, 64, 128, 256, 640, 1 << 30)
WAYS = ("its own", "the mean", "made up to 32", "made up to 640", "1")
Values = NDArray[np.float32]


def estimates(entry: Entry) -> list[Values]:
    """The importance [experts, columns] by each of the ways."""
    counts, own = entry.counts[:, None], entry.mean()
    mean = entry.in_sum2.sum(axis=0) / entry.counts.sum()

    def made_up(floor: int) -> Values:
        return (entry.in_sum2 + np.maximum(floor - counts, 0) * mean) / np.maximum(floor, counts)

    return [own, np.broadcast_to(mean, own.shape), made_up(32), made_up(640), np.ones_like(own)]


def values(data: bytes, kind: str, shape: tuple[int, ...]) -> Values:
    """The values [experts, rows, columns] of a tensor's bytes."""
    raw = np.frombuffer(data, np.uint8).reshape(shape[2] * shape[1], -1)
    return gguf.dequantize(raw, gguf.GGMLQuantizationType[kind.upper()]).reshape(shape[::-1])


def errors(data: NDArray[np.uint8], tensor: Tensor, kind: str, importance: Values, true: Values) -> Values:
    """Of each expert the squared error at the type `kind`, weighted by its true importance."""
    with ThreadPoolExecutor(1) as pool:
        given = np.ascontiguousarray(importance, np.float32)
        made = ggml.Conversion(pool, 1, data, tensor.type, kind, tensor.shape, given).result()
    off = values(bytes(made), kind, tensor.shape) - values(data.tobytes(), tensor.type, tensor.shape)
    return (off**2 * true[:, None, :]).sum(axis=(1, 2))


def main() -> None:
    """Print a line for each class of counts."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("true", type=Path)
    arguments.add_argument("few", type=Path, nargs="+")
    arguments.add_argument("--type", default="q3_K")
    arguments.add_argument("--layers", default="0")
    args = arguments.parse_args()
    layers = {int(layer) for layer in args.layers.split(",")}
    found = []
    true, few = read_gguf(args.true).entries, [read_gguf(path).entries for path in args.few]
    for tensor in read_header(args.model).tensors:
        if "_exps" not in tensor.name or layer_of(tensor.name) not in layers:
            continue
        data = np.memmap(args.model, np.uint8, "r", tensor.offset, (tensor.bytes,))
        right = true[tensor.name].mean()
        least = errors(data, tensor, args.type, right, right)
        for entry in (entries[tensor.name] for entries in few):
            more = [errors(data, tensor, args.type, way, right) / least - 1 for way in estimates(entry)]
            found += [(count, *one) for count, *one in zip(entry.counts, *more, strict=True)]
    table = np.array(found)
    print(f"{args.type}, error above that with the true importance; tokens, experts, {', '.join(WAYS)}")
    for low, high in pairwise(CLASSES):
        of = table[(table[:, 0] >= low) & (table[:, 0] < high)]
        if len(of):
            print(f"{low:4} {len(of):4} " + " ".join(f"{share:6.1%}" for share in of[:, 1:].mean(axis=0)))


if __name__ == "__main__":
    main()
