"""The rows of a corpus file: a column of a parquet file, or plain text cut into rows.

Both are read as a stream, so that memory stays flat whatever the file's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from quantmill.errors import QuantmillError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS: Final = ("content", "text", "messages")
ROW_CHARACTERS: Final = 4000
"""Where plain text may be cut: at the first empty line after so many characters, and
at the first line end after twice as many. A longer line is cut there itself."""

_BATCH_ROWS = 128
_READ_BYTES = 1 << 20


class Source(NamedTuple):
    """A file that can be read as rows. `column` is None for plain text; `messages`:
    the column holds chat messages; `rows` is their number, None where it is unknown."""

    path: Path
    column: str | None
    messages: bool
    rows: int | None


def open_source(path: Path, column: str | None = None) -> Source:
    """Look at a `.parquet` or `.txt` file; of a parquet file, the footer alone is read.

    Without `column` it is the first of `content`, `text` and `messages` that
    there is, or the only column that holds text. Raises QuantmillError for a
    missing or truncated file and for a missing or unfit column.
    """
    if not path.is_file():
        raise QuantmillError("no such file", path, "check the path of the source")
    if path.suffix == ".txt":
        if column is not None:
            raise QuantmillError(f"plain text has no column {column}", path, "leave `column` out")
        return Source(path, None, messages=False, rows=None)
    if path.suffix != ".parquet":
        raise QuantmillError("neither .parquet nor .txt", path, "convert it, or give it its right name")
    with _parquet(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    kinds = {field.name: kind for field in schema if (kind := _kind(field.type)) is not None}
    chosen = column or _guess(kinds)
    if chosen not in kinds:
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
        what = f"no column {column}" if column else "no column that is plainly the text"
        if column in schema.names:
            what = f"the column {column} is neither text nor messages"
        raise QuantmillError(what, path, f"set `column` to one of those it has: {' '.join(listed.split())}")
    return Source(path, chosen, messages=kinds[chosen] == "messages" or chosen == "messages", rows=rows)


def read_rows(source: Source) -> Iterator[object]:
    """The rows, one by one, for `decode`: text, its UTF-8, or a list of messages.

    A row that cannot be read as such (no UTF-8) is handed on as the error that
    it raised. Raises QuantmillError where the file is damaged further in.
    """
    if source.column is None:
        yield from _text_rows(source.path)
        return
    with _parquet(source.path) as file:
        batches = file.iter_batches(_BATCH_ROWS, columns=[source.column], use_threads=False)
        while (batch := _next(batches, source.path)) is not None:
            yield from _values(batch.column(source.column))


def _text_rows(path: Path) -> Iterator[str]:
    # What is no UTF-8 becomes a lone surrogate, and the row it stands in counts as broken.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        lines: list[str] = []
        length = 0
        while line := file.readline(2 * ROW_CHARACTERS):
            lines.append(line)
            length += len(line)
            if length >= 2 * ROW_CHARACTERS or (length >= ROW_CHARACTERS and not line.strip()):
                yield "".join(lines)
                lines, length = [], 0
        if lines:
            yield "".join(lines)


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With a read buffer a column chunk is decoded page by page; without, it is read whole.
        return pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _next(batches: Iterator[Any], path: Path) -> Any:
    import pyarrow as pa

    try:
        return next(batches, None)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> QuantmillError:
    return QuantmillError(f"no whole parquet file ({str(error)[:120]})", path, "fetch it again")


def _kind(type: pa.DataType) -> str | None:
    """`text` for strings and bytes, `messages` for a list of structs with role and content."""
    from pyarrow import types

    if types.is_dictionary(type):
        type = type.value_type
    texts = types.is_string, types.is_large_string, types.is_string_view
    blobs = types.is_binary, types.is_large_binary, types.is_binary_view
    if any(fits(type) for fits in (*texts, *blobs)):
        return "text"
    if types.is_list(type) or types.is_large_list(type):
        item = type.value_type
        if types.is_struct(item) and {"role", "content"} <= {field.name for field in item}:
            return "messages"
    return None


def _guess(kinds: dict[str, str]) -> str | None:
    named = [name for name in COLUMNS if name in kinds]
    return named[0] if named else next(iter(kinds)) if len(kinds) == 1 else None


def _values(column: pa.Array) -> Iterator[object]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_nested(column.type):
        # Bytes, for pyarrow would fail a whole batch over one row that is no UTF-8.
        yield from column.cast(pa.large_binary()).to_pylist()
        return
    try:
        yield from column.to_pylist()
    except UnicodeDecodeError:
        for scalar in column:
            try:
                yield scalar.as_py()
            except UnicodeDecodeError as error:
                yield error
