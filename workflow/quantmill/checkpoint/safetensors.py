"""safetensors files: their headers, their tensors by memory map, and streaming writing.

The format (github.com/huggingface/safetensors): eight bytes, the header's
length, little-endian; the header, JSON, `name: {dtype, shape, data_offsets}`;
the tensors' bytes, without gaps. The package `safetensors` reads no BF16 into
numpy and writes only what is whole in memory; the tests read our files with it.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from quantmill.errors import QuantmillError
from quantmill.files import is_file, part_of, read_mapping

Bytes = npt.NDArray[np.uint8]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Bytes of an element.
SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
_HEADER_MAX = 100_000_000  # the reference library's own limit
_CURE = "fetch the file again"


@dataclass(frozen=True)
class Tensor:
    """One tensor: its dtype by safetensors' name, its shape (rows first), and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int = 0

    @property
    def bytes(self) -> int:
        """Size of the data."""
        return SIZES[self.dtype] * math.prod(self.shape)


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one file, in the order of their bytes.

    QuantmillError, naming the file and the tensor, where the header is none or
    the tensors do not fill the file exactly.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if length > min(_HEADER_MAX, size - 8):
                raise QuantmillError("is cut short, or no safetensors file", path, _CURE)
            header = dict(json.loads(file.read(length)))
        header.pop("__metadata__", None)
        tensors = [_tensor(name, entry, path, 8 + length) for name, entry in header.items()]
    except FileNotFoundError:
        raise QuantmillError("no such file", path, "check the path") from None
    except OSError as error:
        raise QuantmillError(f"cannot be read ({error.strerror})", path) from None
    except (ValueError, TypeError, RecursionError):
        raise QuantmillError("has no valid header", path, _CURE) from None
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.bytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise QuantmillError(f"{tensor.name} does not begin where the one before ends", path, _CURE)
        end += tensor.bytes
    if end != size:
        raise QuantmillError(f"has {size:,} bytes, its header speaks of {end:,}", path, _CURE)
    return tensors


def _tensor(name: str, entry: dict[str, Any], path: Path, data: int) -> Tensor:
    try:
        tensor = Tensor(name, entry["dtype"], tuple(entry["shape"]), path, data + entry["data_offsets"][0])
        fits = tensor.bytes == entry["data_offsets"][1] - entry["data_offsets"][0]
        fits = fits and all(isinstance(n, int) and n >= 0 for n in (*tensor.shape, tensor.offset - data))
    except (KeyError, TypeError, IndexError):
        raise QuantmillError(f"{name} has a dtype, shape or place that is not known", path, _CURE) from None
    if not fits:
        raise QuantmillError(f"{name} has another size than its shape", path, _CURE)
    return tensor


def _is_text(value: object) -> bool:
    return isinstance(value, str)


class Checkpoint:
    """The tensors of a folder: of one file, or of the shards that its index names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, Any] | None = None
        shards = [SINGLE]
        placed: dict[str, str] = {}
        if (folder / INDEX).exists():
            self.index = read_mapping(folder / INDEX)
            placed = self.index.get("weight_map", {})
            if not placed or not isinstance(placed, dict) or not all(map(_is_text, placed.values())):
                raise QuantmillError("has no weight_map", folder / INDEX, _CURE)
            shards = sorted(set(placed.values()))
        for shard in shards:
            if Path(shard).name != shard or not is_file(folder / shard):
                by = f"named by {INDEX}" if placed else "and no index"
                raise QuantmillError(f"no {shard}, {by}", folder, "fetch the missing file")
        self.tensors = {tensor.name: tensor for shard in shards for tensor in read_header(folder / shard)}
        self.shards = [folder / shard for shard in shards]
        for name, shard in placed.items():
            if name not in self.tensors or self.tensors[name].file.name != shard:
                raise QuantmillError(f"lacks {name}, which {INDEX} places there", folder / shard, _CURE)

    def data(self, tensor: Tensor) -> Bytes:
        """A tensor's bytes; of a large one by a memory map of its own: its pages go with it."""
        return np.frombuffer(part_of(tensor.file, tensor.offset, tensor.bytes), np.uint8)


class Writer:
    """A new file whose tensors are known before their data: the header first, then each in any order.

    Between its tensors it is closed: a checkpoint may have a thousand of them.
    """

    def __init__(self, path: Path, tensors: list[Tensor]) -> None:
        # Widest elements first, as the reference library lays them out: so each is aligned.
        ordered = sorted(tensors, key=lambda tensor: (-SIZES[tensor.dtype], tensor.name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end, self._places = 0, {}
        for tensor in ordered:
            start, end = end, end + tensor.bytes
            self._places[tensor.name] = (start, end)
            header[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        self._path, self._data = path, 8 + len(text)
        with path.open("xb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(self._data + end)

    def put(self, name: str, data: npt.NDArray[Any]) -> None:
        """Write the data of one tensor: an array of exactly its bytes."""
        start, end = self._places.pop(name)
        if data.nbytes != end - start:
            raise ValueError(f"{name}: {data.nbytes} bytes for a place of {end - start}")
        with self._path.open("r+b") as file:
            file.seek(self._data + start)
            file.write(np.ascontiguousarray(data).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            if self._places:
                raise ValueError(f"never written: {min(self._places)}")
            with self._path.open("r+b") as file:
                os.fsync(file.fileno())
