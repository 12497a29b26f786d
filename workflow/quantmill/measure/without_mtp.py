"""A model without its layers of multi-token prediction, for an engine that cannot load them.

No evaluation uses these layers. llama.cpp leaves them unread; the pinned
ik_llama.cpp takes them for ordinary ones of most architectures, and refuses the
file. What it evaluates is then a copy without them, all else byte for byte.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from quantmill.engine import library
from quantmill.errors import QuantmillError
from quantmill.files import part_of, writing
from quantmill.formats.ggufio import (
    ARRAY,
    Header,
    Value,
    encode_u32,
    padded,
    read_header,
    serialize,
)
from quantmill.model.roles import layer_of


@contextmanager
def evaluable(path: Path) -> Iterator[Path]:
    """The GGUF that this process's engine can load for `path`: itself, or a copy that goes afterwards.

    The copy lies in the folder for temporary files. QuantmillError where that has no room for it.
    """
    if library.in_use() == "mainline":
        yield path
        return
    header = read_header(path, data=False)
    if not header.has_mtp:
        yield path
        return
    layers = header.evaluated
    with tempfile.TemporaryDirectory() as folder:
        _refuse_if_short(Path(folder), header, path)
        copy = Path(folder) / "without-mtp.gguf"
        _write(header, layers, copy)
        yield copy


def _write(header: Header, layers: int, copy: Path) -> None:
    """The first `layers` layers, and what stands outside the layers."""
    tensors = [tensor for tensor in header.tensors if layer_of(tensor.name) < layers]
    listed = [(tensor.name, tensor.type_id, tensor.shape) for tensor in tensors]
    with writing(copy, durable=False) as file:
        file.write(serialize(_kv(header, layers), listed))
        for tensor in tensors:
            file.write(part_of(header.shards[tensor.shard], tensor.offset, tensor.bytes))
            file.write(bytes(padded(tensor.bytes) - tensor.bytes))


def _kv(header: Header, layers: int) -> Mapping[str, Value]:
    """The key-value pairs of a model of fewer layers: counts, and arrays of a value a layer, are cut."""
    own = f"{header.architecture}."
    gone = {
        f"{own}nextn_predict_layers",
        "general.alignment",
        "split.no",
        "split.count",
        "split.tensors.count",
    }
    kv = {key: value for key, value in header.kv.items() if key not in gone}
    for key, (kind, raw) in kv.items():
        if key.startswith(own) and kind == ARRAY:
            element, count = struct.unpack_from("<IQ", raw)
            if count == header.layers:
                size = (len(raw) - 12) // count
                kv[key] = ARRAY, struct.pack("<IQ", element, layers) + raw[12 : 12 + layers * size]
    return kv | {f"{own}block_count": encode_u32(layers)}


def _refuse_if_short(folder: Path, header: Header, path: Path) -> None:
    needed, free = sum(shard.stat().st_size for shard in header.shards), shutil.disk_usage(folder).free
    if free < needed:
        raise QuantmillError(
            f"ik_llama.cpp evaluates a copy without its multi-token prediction, of {needed:,} bytes;"
            f" {folder.parent} has {free:,}",
            path,
            "free some space, or set TMPDIR",
        )
