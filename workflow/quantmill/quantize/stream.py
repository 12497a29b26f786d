"""Tensors, as they come, into one GGUF or several."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import IO, Final, NamedTuple

from quantmill.files import building, writing
from quantmill.formats import ggufio
from quantmill.formats.publication import Part
from quantmill.progress import Progress
from quantmill.quantize import split
from quantmill.store import Payload, Unit

_FLUSHED_BYTES: Final = 16 << 20

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
    recording: Recording = not_recorded,
) -> list[Written]:
    """Stream a model into one file."""
    with writing(path) as file, recording(Path(file.name)) as record:
        return [_stream(file, path.name, whole, tensors, progress, record)]


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
    with _flushing(file) as flush:
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
            flush(size)
            progress.add(len(data) + len(padding))
    written: Part = {"file": name, "bytes": size, "sha256": digests[0].hexdigest()}
    return Written(written, digests[-1].hexdigest())


@contextmanager
def _flushing(file: IO[bytes]) -> Iterator[Callable[[int], None]]:
    """Have a file go to the disk while it is written: at its end there is little left to wait for.

    The function is told how long the file is by now.
    """
    begun, flushed = 0, Future[None]()
    flushed.set_result(None)

    def flush(size: int) -> None:
        nonlocal begun, flushed
        if size - begun >= _FLUSHED_BYTES and flushed.done():
            flushed.result()
            begun, flushed = size, pool.submit(os.fsync, file.fileno())

    with ThreadPoolExecutor(1) as pool:
        yield flush
        flushed.result()


def write_parts(
    folder: Path,
    files: list[split.File],
    tensors: Iterator[Unit | Payload],
    progress: Progress,
    recording: Recording = not_recorded,
) -> list[Written]:
    """Stream a model into the files of a new folder."""
    parts: list[Written] = []
    with building(folder) as made:
        for one in files:
            with writing(made / one.name) as file, recording(Path(file.name)) as record:
                named = f"{folder.name}/{one.name}"
                parts.append(_stream(file, named, one, islice(tensors, one.tensors), progress, record))
    return parts
