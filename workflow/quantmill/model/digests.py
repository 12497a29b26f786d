"""Digests of files, each read once for all that is to be known of it, and noted for the whole machine.

One pass over a file gives its sha256, and of a GGUF the sha256 of each tensor and whether any is NaN or
infinite. One thread reads, one hashes the file, one the tensors (hashlib releases the GIL); several files
are read side by side.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Final, NamedTuple

from quantmill.errors import QuantmillError
from quantmill.files import write_atomically
from quantmill.formats.ggufio import Tensor, read_shard
from quantmill.model.finite import Search
from quantmill.progress import BYTES, Log
from quantmill.spec import digest

_BLOCK: Final = 4 << 20
_AHEAD: Final = 4  # blocks that are read before they are hashed
_HEX: Final = 64  # characters of a sha256
_THREADS_A_FILE: Final = 2  # those that hash; reading takes little


class FileDigests(NamedTuple):
    """What is known of a file: its sha256, of a GGUF those of its tensors, and what is NaN or infinite.

    `tensors` is None where it is no sound GGUF, or was noted by an earlier version.
    """

    sha256: str
    tensors: dict[str, str] | None = None
    broken: str = ""


class _StoppedError(Exception):
    """The digests of a file are no longer asked for, as those of another cannot be had."""


class Memo:
    """Remembers the digests of files by (path, size, mtime, inode).

    One small file per digest in each of `folders`, each written atomically, so
    that any number of processes can share it. It is what keeps parsing a workflow
    over terabytes of models fast. The user's cache is shared by all projects of a
    machine, the store perhaps by machines. Where notes cannot be read or written, the files are
    read again.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = list(folders)

    @classmethod
    def of_project(cls, store: Path) -> Memo:
        """The notes in the user's cache and in a project's store."""
        return cls([*_cache(), store / "digests"])

    @classmethod
    def of_stage(cls) -> Memo:
        """The same for the command of a stage, whose environment names the store."""
        store = os.environ.get("QUANTMILL_STORE")
        return cls.of_project(Path(store)) if store else cls(_cache())

    def sha256(self, path: Path) -> str:
        """sha256 (hex) of the file, from the notes where it has not changed.

        Raises QuantmillError where the file is missing or cannot be read.
        """
        return self.read([path], 1)[0].sha256

    def read(
        self,
        paths: Sequence[Path],
        threads: int,
        log: Log | None = None,
        *,
        tensors: bool = False,
        report_above: int = -1,
    ) -> list[FileDigests]:
        """The digests of files, from the notes or read side by side; with `tensors` of all of them too.

        Progress goes to `log` where more than `report_above` bytes are to be read. QuantmillError
        where a file is missing, cannot be read, or changes while it is read: nothing of it is noted.
        """
        found = {path: self._noted(path, tensors) for path in paths}
        due = [path for path, known in found.items() if known is None]
        total = sum(_identity(path)[1] for path in due)
        if due:
            with _reported(log if total > report_above else None, due, total) as done:
                found |= zip(due, self._read_all(due, threads, done), strict=True)
        return [known for path in paths if (known := found[path]) is not None]

    def _read_all(self, paths: list[Path], threads: int, done: Callable[[int], None]) -> list[FileDigests]:
        stop = threading.Event()

        def count(size: int) -> None:
            if stop.is_set():
                raise _StoppedError
            done(size)

        with ThreadPoolExecutor(max(1, min(len(paths), threads // _THREADS_A_FILE))) as pool:
            try:
                return list(pool.map(partial(self._read, threads=threads, done=count), paths))
            except BaseException:  # an interrupt too: the other files are not read to their ends
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _read(self, path: Path, threads: int, done: Callable[[int], None]) -> FileDigests:
        """The digests of a file, noted once it is read."""
        identity = _identity(path)
        try:
            known = _pass(path, identity[1], threads, done)
        except OSError as error:
            raise QuantmillError(f"cannot be read ({error.strerror})", path) from None
        if _identity(path) != identity:
            raise _changed(path)
        rest = {"tensors": known.tensors, "broken": known.broken}
        note = known.sha256 if known.tensors is None else f"{known.sha256}\n{json.dumps(rest)}"
        for folder in self.folders:
            with suppress(QuantmillError):
                write_atomically(folder / digest(identity), note.encode(), durable=False)
        return known

    def _noted(self, path: Path, tensors: bool) -> FileDigests | None:
        name = digest(_identity(path))
        for folder in self.folders:
            with suppress(OSError, ValueError, TypeError), (folder / name).open(encoding="utf-8") as file:
                sha256 = file.read(_HEX)
                int(sha256, 16)
                if len(sha256) == _HEX and not tensors:
                    return FileDigests(sha256)
                if rest := file.read():
                    return FileDigests(sha256, **json.loads(rest))
        return None


def _cache() -> list[Path]:
    """The folder of notes in the user's cache; none for a user without a home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with suppress(RuntimeError):
        # a relative one is to be ignored, says the XDG Base Directory Specification
        base = cache if cache.is_absolute() else Path.home() / ".cache"
        return [base / "quantmill" / "digests"]
    return []


def _identity(path: Path) -> tuple[str, int, int, int]:
    """By what a file is known again: its path, size, mtime and inode."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        raise QuantmillError("no such file", path, "check the path") from None
    except OSError as error:
        raise QuantmillError(f"cannot be read ({error.strerror})", path) from None
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino


def _changed(path: Path) -> QuantmillError:
    return QuantmillError("changed while it was read", path, "start again once it is complete")


@contextmanager
def _reported(log: Log | None, paths: list[Path], total: int) -> Iterator[Callable[[int], None]]:
    """What to call with each number of bytes read."""
    if log is None:
        yield lambda size: None
        return
    what = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
    with log.progress(f"hashing {what}", total, BYTES) as progress:
        yield progress.add


def _pass(path: Path, size: int, threads: int, done: Callable[[int], None]) -> FileDigests:
    """Read a file of `size` bytes once."""
    tensors = _tensors(path)
    whole, of_tensors, searches = hashlib.sha256(), {}, []
    with (
        path.open("rb", buffering=0) as file,
        ThreadPoolExecutor(1) as first,
        ThreadPoolExecutor(1) as second,
    ):
        hashers = (first, second if threads > 1 else first)
        blocks = _Blocks(file, path, hashers)
        for tensor, part in _parts(tensors or (), size):
            if tensor is None:
                for block in blocks.read(part, 1, [whole]):
                    done(len(block))
                continue
            search, of_tensors[tensor.name] = Search(tensor), hashlib.sha256()
            for block in blocks.read(part, search.unit, [whole, of_tensors[tensor.name]]):
                search.look(block)
                done(len(block))
            searches.append(search)
        blocks.finish()
    broken = next(filter(None, (search.result() for search in searches)), "")
    digests = {name: one.hexdigest() for name, one in of_tensors.items()}
    return FileDigests(whole.hexdigest(), digests if tensors is not None else None, broken)


class _Blocks:
    """Reads a file's next bytes into a few buffers, and has each hashed while others are read."""

    def __init__(self, file: IO[bytes], path: Path, hashers: Sequence[Executor]) -> None:
        self._file, self._path, self._hashers = file, path, hashers
        self._busy: deque[tuple[bytearray, list[Future[None]]]] = deque()

    def read(self, size: int, unit: int, digests: Sequence[hashlib._Hash]) -> Iterator[memoryview]:
        """The next `size` bytes, each time a multiple of `unit`, for each digest in a thread of its own."""
        most = _BLOCK // unit * unit
        while size > 0:
            buffer = self._free()
            block = memoryview(buffer)[: min(most, size)]
            at = 0
            while at < len(block):  # a read may return fewer bytes than requested
                count = self._file.readinto(block[at:])  # type: ignore[attr-defined]
                if not count:
                    raise _changed(self._path)
                at += count
            futures = [
                pool.submit(one.update, block) for pool, one in zip(self._hashers, digests, strict=False)
            ]
            self._busy.append((buffer, futures))
            size -= len(block)
            yield block

    def finish(self) -> None:
        """Wait until all is hashed."""
        while self._busy:
            self._oldest()

    def _free(self) -> bytearray:
        return bytearray(_BLOCK) if len(self._busy) < _AHEAD else self._oldest()

    def _oldest(self) -> bytearray:
        buffer, futures = self._busy.popleft()
        for future in futures:
            future.result()
        return buffer


def _tensors(path: Path) -> tuple[Tensor, ...] | None:
    """The tensors of a GGUF or of a part of one; None where the file is no sound one, which others refuse."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return None
    try:
        return read_shard(path)
    except QuantmillError:
        return None


def _parts(tensors: Iterable[Tensor], size: int) -> Iterator[tuple[Tensor | None, int]]:
    """(tensor, bytes) of a file from its start to its end; None for what lies between tensors."""
    at = 0
    for tensor in tensors:
        yield None, tensor.offset - at
        yield tensor, tensor.bytes
        at = tensor.offset + tensor.bytes
    yield None, size - at
