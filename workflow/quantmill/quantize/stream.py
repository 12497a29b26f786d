"""Tensors, as they come, into one GGUF or several."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import IO

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


def write(
    path: Path,
    header: bytes,
    tensors: Iterator[Unit | Payload],
    progress: Progress,
    tried: Trial,
    recording: Recording = not_recorded,
) -> tuple[int, str]:
    """Stream a model into one file; its bytes and sha256 (hex).

    `tried` is given the whole file before it has its name, and raises what speaks against it.
    """
    with writing(path) as file:
        with recording(Path(file.name)) as record:
            size, sha256 = _stream(file, header, tensors, progress, record)
        with ThreadPoolExecutor(1) as pool:  # it is written to the disk while it is tried
            flushed = pool.submit(os.fsync, file.fileno())
            tried(Path(file.name))
            flushed.result()
    return size, sha256


def _stream(
    file: IO[bytes], header: bytes, tensors: Iterator[Unit | Payload], progress: Progress, record: Record
) -> tuple[int, str]:
    """Stream a header and the tensors, each padded, into a file; its bytes and sha256 (hex)."""
    digest, size = hashlib.sha256(header), len(header)
    file.write(header)
    for piece in tensors:
        data = piece.payload if isinstance(piece, Unit) else piece
        padding = bytes(-len(data) % ggufio.ALIGNMENT)
        for part in (data, padding):
            file.write(part)
            digest.update(part)
        if isinstance(piece, Unit):
            file.flush()
            record(piece, size)
        size += len(data) + len(padding)
        progress.add(len(data) + len(padding))
    file.flush()
    return size, digest.hexdigest()


def write_parts(
    folder: Path,
    files: list[split.File],
    tensors: Iterator[Unit | Payload],
    progress: Progress,
    tried: Trial,
    recording: Recording = not_recorded,
) -> list[Part]:
    """Stream a model into the files of a new folder; their names, sizes and digests.

    `tried` is given the first of them, all written, before the folder has its name.
    """
    parts: list[Part] = []
    with building(folder) as made:
        for name, header, count in files:
            with writing(made / name) as file, recording(Path(file.name)) as record:
                size, sha256 = _stream(file, header, islice(tensors, count), progress, record)
            parts.append({"file": f"{folder.name}/{name}", "bytes": size, "sha256": sha256})
        tried(made / files[0][0])
    return parts
