"""Whole files or none: every output is written beside its place, then renamed."""

from __future__ import annotations

import json
import mmap
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from quantmill.errors import QuantmillError

# Up to here reading is as fast as mapping, and each map holds an open file.
_MAPPED_ABOVE = 1 << 20


def part_of(path: Path, offset: int = 0, size: int | None = None) -> memoryview:
    """`size` bytes of a file from `offset`, or all that follow: few are read, many are mapped and not copied.

    A small part holds no file open, so that there may be any number of them. An
    OSError is the caller's; a file that ends too early is a QuantmillError.
    """
    with path.open("rb") as file:
        rest = os.fstat(file.fileno()).st_size - offset
        size = rest if size is None else size
        if size > rest:
            raise QuantmillError("has become shorter since its header was read", path, "start again")
        if size <= _MAPPED_ABOVE:
            file.seek(offset)
            return memoryview(file.read(size))
        before = offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(file.fileno(), before + size, access=mmap.ACCESS_READ, offset=offset - before)
        return memoryview(mapped)[before:]


@contextmanager
def writing(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` when the block ends without error.

    Until then it is a hidden temporary file beside it; on an error it is
    removed and what stood under `path` stays. `durable` flushes to the disk
    first. A full disk, or a folder that cannot be written to, is a QuantmillError
    that names the file.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            raise QuantmillError(
                f"cannot be written ({error.strerror})", path, "free some space or choose another place"
            ) from error
        raise


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` to `path`, whole or not at all."""
    with writing(path, durable=durable) as file:
        file.write(data)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A new folder that stands under its name when the block ends without error, and else nowhere.

    What stood there before goes only then.
    """
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise QuantmillError(what, folder, "free some space or choose another place") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, whole or not at all."""
    write_atomically(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and machines: sorted keys, an indent of 1, no NaN."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a QuantmillError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QuantmillError("no such file", path) from None
    except ValueError as error:
        cure = "correct it, or delete it to have it made again"
        raise QuantmillError(f"no valid JSON ({error})", path, cure) from None


def write_table(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    """Write a tab-separated table with one header line."""
    lines = ["\t".join(columns), *("\t".join(str(cell) for cell in row) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a tab-separated table with one header line, a dict a row."""
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise QuantmillError("no such file", path) from None
    except ValueError:
        raise QuantmillError("an empty table", path, "delete it to have it made again") from None
    columns = header.split("\t")
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines]
