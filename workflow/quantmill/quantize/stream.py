"""Tensors, as they come, into one GGUF or several."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

from quantmill.files import building, writing
from quantmill.formats import ggufio
from quantmill.formats.publication import Part
from quantmill.progress import Progress
from quantmill.quantize import split
from quantmill.store import Payload, Unit

Trial = Callable[[Path], None]

Record = Callable[[Unit, int], None]
"""Is told of a unit that stands in the file from an offset."""

Recording = Callable[[Path], AbstractContextManager[Record]]
"""What records the units in a file that is being written."""


def not_recorded(_: Path) -> AbstractContextManager[Record]:
    """Record no unit of a file."""
    return nullcontext(lambda unit, offset: None)


class Written(NamedTuple):
    """A file that was written, and the sha256 by which measurements know it."""

    part: Part
    measured: str


def write(
    path: Path,
    whole: split.File,
    tensors: Iterator[Unit | Payload],
    progress: Progress,
    tried: Trial,
    recording: Recording = not_recorded,
) -> list[Written]:
    """Stream a model into one file.

    `tried` is given the whole file before it has its name, and raises what speaks against it.
    """
    with writing(path) as file:
        with recording(Path(file.name)) as record:
            written = _stream(file, path.name, whole, tensors, progress, record)
        with ThreadPoolExecutor(1) as pool:  # it is written to the disk while it is tried
            flushed = pool.submit(os.fsync, file.fileno())
            tried(Path(file.name))
            flushed.result()
    return [written]


def _stream(
    file: IO[bytes],
    name: str,
    whole: split.File,
    tensors: Iterator[Unit | Payload],
    progress: Progress,
    record: Record,
) -> Written:
    """Stream a header and the tensors, each padded, into a file that is called `name` in its report."""
    digests, size = [hashlib.sha256(whole.header)], len(whole.header)
    if whole.measured != whole.header:
        digests.append(hashlib.sha256(whole.measured))
    file.write(whole.header)
    for piece in tensors:
        data = piece.payload if isinstance(piece, Unit) else piece
        padding = bytes(-len(data) % ggufio.ALIGNMENT)
        for part in (data, padding):
            file.write(part)
            for digest in digests:
                digest.update(part)
        if isinstance(piece, Unit):
            file.flush()
            record(piece, size)
        size += len(data) + len(padding)
        progress.add(len(data) + len(padding))
    file.flush()
    written: Part = {"file": name, "bytes": size, "sha256": digests[0].hexdigest()}
    return Written(written, digests[-1].hexdigest())


def write_parts(
    folder: Path,
    files: list[split.File],
    tensors: Iterator[Unit | Payload],
    progress: Progress,
    tried: Trial,
    recording: Recording = not_recorded,
) -> list[Written]:
    """Stream a model into the files of a new folder.

    `tried` is given the first of them, all written, before the folder has its name.
    """
    parts: list[Written] = []
    with building(folder) as made:
        for one in files:
            with writing(made / one.name) as file, recording(Path(file.name)) as record:
                named = f"{folder.name}/{one.name}"
                parts.append(_stream(file, named, one, islice(tensors, one.tensors), progress, record))
        tried(made / files[0].name)
    return parts
