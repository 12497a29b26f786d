"""A model without its layers of multi-token prediction, for an engine that cannot load them.

No evaluation uses these layers. llama.cpp leaves them unread; the pinned
ik_llama.cpp takes them for ordinary ones of most architectures, and refuses the
file. What it evaluates is then a copy without them, all else byte for byte.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from quantmill.engine import library
from quantmill.errors import QuantmillError
from quantmill.files import part_of, writing
from quantmill.formats.ggufio import Header, padded, read_header, serialize
from quantmill.model.heads import NONE, for_file

_GONE: Final = frozenset(("general.alignment", "split.no", "split.count", "split.tensors.count"))


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
    with tempfile.TemporaryDirectory() as folder:
        _refuse_if_short(Path(folder), header, path)
        copy = Path(folder) / "without-mtp.gguf"
        _write(for_file(header, NONE), copy)
        yield copy


def _write(header: Header, copy: Path) -> None:
    """The model of that header in one file."""
    kv = {key: value for key, value in header.kv.items() if key not in _GONE}
    with writing(copy, durable=False) as file:
        file.write(serialize(kv, [(tensor.name, tensor.type_id, tensor.shape) for tensor in header.tensors]))
        for tensor in header.tensors:
            file.write(part_of(header.shards[tensor.shard], tensor.offset, tensor.bytes))
            file.write(bytes(padded(tensor.bytes) - tensor.bytes))


def _refuse_if_short(folder: Path, header: Header, path: Path) -> None:
    needed, free = sum(shard.stat().st_size for shard in header.shards), shutil.disk_usage(folder).free
    if free < needed:
        raise QuantmillError(
            f"ik_llama.cpp evaluates a copy without its multi-token prediction, of {needed:,} bytes;"
            f" {folder.parent} has {free:,}",
            path,
            "free some space, or set TMPDIR",
        )
