"""Whole files or none: every output is written beside its place, then renamed."""

from __future__ import annotations

import codecs
import csv
import json
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import IO, Any, Final

from quantmill import parts
from quantmill.errors import QuantmillError

# The longer ones first: UTF-32's begins with UTF-16's.
_BYTE_ORDER_MARKS: Final = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SNIFFED: Final = 1 << 20
"""The first bytes of a text that give its encoding."""
_NULS_OF_TEXT: Final = 0.01
"""The largest share of NUL bytes in what may be text of one byte a letter: of UTF-16 they are far more."""

_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
"""In JSON, what may be half a letter."""

_MAKE_AGAIN: Final = "delete it to have it made again"

# Up to here reading is as fast as mapping, and each map holds an open file.
_MAPPED_ABOVE = 1 << 20


def part_of(path: Path, offset: int = 0, size: int | None = None, *, mapped: bool = True) -> memoryview:
    """`size` bytes of a file from `offset`, or all that follow: few are read, many are mapped and not copied.

    A small part holds no file open, so that there may be any number of them. Without `mapped`
    all is read: of a file that another machine may delete, a mapped part is lost. An
    OSError is the caller's; a file that ends too early is a QuantmillError.
    """
    with path.open("rb") as file:
        rest = os.fstat(file.fileno()).st_size - offset
        size = rest if size is None else size
        if size > rest:
            raise QuantmillError("has become shorter since its header was read", path, "start again")
        if size <= _MAPPED_ABOVE or not mapped:
            file.seek(offset)
            return memoryview(file.read(size))
        before = offset % mmap.ALLOCATIONGRANULARITY
        pages = mmap.mmap(file.fileno(), before + size, access=mmap.ACCESS_READ, offset=offset - before)
        return memoryview(pages)[before:]


@contextmanager
def writing(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` when the block ends without error.

    Until then it is a hidden temporary file beside it; on an error it is
    removed and what stood under `path` stays. `durable` flushes to the disk
    first, and removes what killed writers of `path` have left. A full disk, or a
    folder that cannot be written to, is a QuantmillError that names the file.
    """
    part = parts.new(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            parts.sweep(path)
        with part.open("xb") as file:
            parts.hold(file.fileno())
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            part.replace(path)  # while it is held
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

    What stood there before goes only then. What killed writers have left is removed first.
    """
    part = parts.new(folder)
    try:
        parts.sweep(folder)
        part.mkdir(parents=True)
        with parts.holding(part):
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


def json_text(value: Any) -> str:
    """JSON for people and machines: sorted keys, an indent of 1, no NaN."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `json_text`."""
    write_text(path, json_text(value))


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a QuantmillError that names it."""
    text = read_user_text(path, cure=None)
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):  # half a letter, which no UTF-8 can hold, is no text to be passed on
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        cure = "correct it, or delete it to have it made again"
        raise QuantmillError(f"no valid JSON ({error})", path, cure) from None
    return value


def read_mapping(path: Path) -> dict[str, Any]:
    """The same of a file that holds a mapping."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise QuantmillError("is no JSON object", path, "give the file that its name promises")
    return value


def write_table(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    """Write a tab-separated table with one header line."""
    lines = ["\t".join(columns), *("\t".join(str(cell) for cell in row) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a tab-separated table with one header line, a dict a row. QuantmillError where it is none."""
    text = read_user_text(path, cure=None)
    if not text:
        raise QuantmillError("an empty table", path, _MAKE_AGAIN)
    header, *rows = split_lines(text)
    columns = header.split("\t")
    if len(set(columns)) < len(columns):
        raise QuantmillError("has two columns of one name", path, _MAKE_AGAIN)
    table = []
    for number, row in enumerate(rows, start=2):
        cells = row.split("\t")
        if len(cells) != len(columns):
            what = f"has {len(cells)} cells in line {number}, and {len(columns)} columns"
            raise QuantmillError(what, path, _MAKE_AGAIN)
        table.append(dict(zip(columns, cells, strict=True)))
    return table


def is_file(path: Path) -> bool:
    """Whether there is such a file: a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def split_lines(text: str) -> list[str]:
    """The lines of `text`, without their ends.

    Unlike `splitlines` it ends a line at a line feed alone: U+2028, U+0085, form
    feeds and the like may stand in the JSON or in the cell that a line holds.
    """
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def read_csv(path: Path, cure: str | None = "check the path") -> list[list[str]]:
    """The rows of a user's table of comma-separated values, empty lines left out."""
    text = read_user_text(path, cure)
    rows = csv.reader(StringIO(text, newline=""))
    try:
        return [row for row in rows if row]
    except csv.Error as error:
        where = f"{path}: line {rows.line_num}"
        raise QuantmillError(f"no comma-separated values ({error})", where, "put it right") from None


def text_encoding(start: bytes, path: object) -> str:
    """The encoding of a text that begins with the bytes `start`: as its byte order mark says, else UTF-8.

    QuantmillError for UTF-16 or UTF-32 without such a mark, and for text in
    another encoding, such as Latin-1 or GBK. A few bytes that are no UTF-8 among
    more letters of it are left to the reader.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding
    if start.count(0) > _NULS_OF_TEXT * len(start):
        width = 32 if start.count(0) > len(start) / 2 else 16
        raise QuantmillError(
            f"is full of NUL bytes: no text, or UTF-{width} without a byte order mark",
            path,
            _saved_as_utf8(f"UTF-{width}{'LE' if start[0] else 'BE'}"),
        )
    known = start.decode("utf-8", errors="ignore")
    unknown = len(start) - len(known.encode())
    # a letter of up to 3 bytes may be cut off where `start` ends
    if unknown > 3 and unknown > len(known) - len(known.encode("ascii", errors="ignore")):
        raise _no_utf8(path)
    return "utf-8"


def read_user_text(path: Path, cure: str | None = "check the path") -> str:
    r"""The text of a file that a user gives, line ends as `\n`.

    QuantmillError for a missing file, where `cure` says what to do, and for what
    is no text in UTF-8 or with the byte order mark of UTF-16 or UTF-32.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise QuantmillError("no such file", path, cure) from None
    except OSError as error:
        raise QuantmillError(f"cannot be read ({error.strerror or error})", path, cure) from None
    return decode_user_text(data, path)


def decode_user_text(data: bytes, path: object) -> str:
    """As `read_user_text`, of bytes that were read already; `path` is named in errors."""
    encoding = text_encoding(data[:SNIFFED], path)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8"):
            raise _no_utf8(path, error.start) from None
        raise QuantmillError(
            f"no whole {encoding.upper()} text, though it begins as one", path, "save it again, as UTF-8"
        ) from None
    if "\0" in text:
        raise QuantmillError("holds NUL characters", path, "remove them, or save it as UTF-8 text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _no_utf8(path: object, at: int | None = None) -> QuantmillError:
    where = "" if at is None else f" (at byte {at})"
    return QuantmillError(f"is not UTF-8{where}", path, _saved_as_utf8("ISO-8859-1"))


def _saved_as_utf8(encoding: str) -> str:
    return f"save it as UTF-8, such as by `iconv -f {encoding} -t UTF-8`"
