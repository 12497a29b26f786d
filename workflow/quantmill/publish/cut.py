"""Files too large for a repository, cut as llama.cpp does: a part is a header and a stretch of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from quantmill.errors import QuantmillError
from quantmill.model.ggufio import Header, padded, read_header
from quantmill.progress import Log
from quantmill.publish.files import Item, Stretch
from quantmill.quantize import split
from quantmill.recipe.table import PlanRow


def cut(items: Iterable[Item], most: int, log: Log) -> list[Item]:
    """The items, each GGUF of more than `most` bytes as its parts, in a folder of its own name.

    No part is larger than `most`, its header included. Nothing is written: a
    part is read from the file where it is needed. QuantmillError where a file
    cannot be cut: it is a part of a model already, or a tensor is larger by itself.
    """
    found: list[Item] = []
    for item in items:
        if item.bytes <= most or not isinstance(item.content, Path) or item.content.suffix != ".gguf":
            found.append(item)
            continue
        with log.progress(f"sha256 of the parts of {item.path}", item.bytes / 2**20, "MiB") as progress:
            for name, part in _parts(item.content, most):
                path = f"{Path(item.path).stem}/{name}"
                found.append(Item(path, part, part.size, _sha256(part)))
                progress.add(part.size / 2**20)
    return found


def _parts(path: Path, most: int) -> Iterator[tuple[str, Stretch]]:
    """The parts by name. What `split` counts is the tensors alone: the longest header goes off before."""
    header = read_header(path)
    if header.value("split.count", 1) > 1:
        raise QuantmillError(f"a part of a model, and larger than {most:,} bytes", path, _CURE)
    rows = [PlanRow(t.name, "", -1, t.shape, t.type, t.type, t.bytes, "") for t in header.tensors]
    room = most - len(split.header(header.kv, rows)) - _SPLIT_KEYS
    largest = max(header.tensors, key=lambda tensor: tensor.bytes)
    if padded(largest.bytes) > room:
        raise QuantmillError(f"{largest.name} alone has {largest.bytes:,} bytes", path, _CURE)
    first = 0
    for file in split.files(path.stem, header.kv, rows, room):
        yield file.name, _stretch(header, file, first)
        first += file.tensors


def _stretch(header: Header, file: split.File, first: int) -> Stretch:
    """A part's header, and where its tensors stand in the whole file: side by side, padded alike."""
    tensors = header.tensors[first : first + file.tensors]
    start, last = tensors[0].offset, tensors[-1]
    return Stretch(file.header, header.path, start, last.offset + padded(last.bytes) - start)


def _sha256(part: Stretch) -> str:
    digest = hashlib.sha256()
    for block in part.blocks():
        digest.update(block)
    return digest.hexdigest()


_CURE = "give `split` a larger size under publish"
_SPLIT_KEYS = 1024  # the three keys that say which part it is take less
