"""The rows of a corpus file: a column of a parquet file, or plain text cut into rows.

Both are read as a stream, so that memory stays flat whatever the file's size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from quantmill.corpus.messages import BrokenRowError, Conversation
from quantmill.errors import QuantmillError
from quantmill.files import SNIFFED, text_encoding

if TYPE_CHECKING:
    import pyarrow as pa

_CHATS: Final = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog")
COLUMNS: Final = ("content", "text", *_CHATS)
"""Names of columns that are plainly the text or the chats, the first wins."""
TOOLS: Final = "tools"
ROW_CHARACTERS: Final = 4000
"""Where plain text may be cut: at the first empty line after so many characters, and
at the first line end after twice as many. A longer line is cut there itself."""

_BATCH_ROWS = 128
_READ_BYTES = 1 << 20


class Source(NamedTuple):
    """A file that can be read as rows. `column` is None for plain text, which is in
    `encoding`; `messages`: the column holds chat messages, and `tools` names that of
    their tools, where there is one; `rows` is their number, None where it is unknown."""

    path: Path
    column: str | None
    messages: bool
    rows: int | None
    tools: str | None = None
    encoding: str = "utf-8"


def open_source(path: Path, column: str | None = None) -> Source:
    """Look at a `.parquet` or `.txt` file; of a parquet file, the footer alone is read.

    Without `column` it is the first of COLUMNS that there is, or the only column
    that holds text or messages. Raises QuantmillError for a missing or truncated
    file, for text in another encoding, and for a missing or unfit column.
    """
    if not path.is_file():
        raise QuantmillError("no such file", path, "check the path of the source")
    if path.suffix == ".txt":
        if column is not None:
            raise QuantmillError(f"plain text has no column {column}", path, "leave `column` out")
        with path.open("rb") as text:
            return Source(path, None, False, None, encoding=text_encoding(text.read(SNIFFED), path))
    if path.suffix != ".parquet":
        raise QuantmillError("neither .parquet nor .txt", path, "convert it, or give it its right name")
    with _parquet(path) as file:
        try:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            kinds = {field.name: kind for field in schema if (kind := _kind(field.type)) is not None}
        except ValueError as error:  # a column whose name is no UTF-8
            raise _damaged(path, error) from None
    chosen = column or _guess(kinds)
    if chosen not in kinds:
        what = f"no column {column}" if column else "no column that is plainly the text or the chats"
        if column in schema.names:
            what = f"the column {column} ({schema.field(column).type}) is neither text nor chats"
        fit = ", ".join(f"{name} ({schema.field(name).type})" for name in kinds)
        cure = (
            f"set `column` to one of those that are: {fit}" if fit else "give a file with a column of either"
        )
        raise QuantmillError(what, path, cure)
    messages = kinds[chosen] == "messages" or chosen == "messages"
    tools = TOOLS if chosen != TOOLS and any(map(_is_tools, schema)) else None
    return Source(path, chosen, messages, rows, tools)


def read_rows(source: Source) -> Iterator[object]:
    """The rows, one by one, for `decode`: text, its UTF-8, a list of messages, or those and their tools.

    A row that cannot be read as such (no UTF-8) is handed on as the error that
    it raised. Raises QuantmillError where the file is damaged further in.
    """
    if source.column is None:
        yield from _text_rows(source.path, source.encoding)
        return
    columns = [name for name in (source.column, source.tools) if name is not None]
    with _parquet(source.path) as file:
        batches = file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)
        while (batch := _next(batches, source.path)) is not None:
            values = _read_values(batch, source.column, source.path)
            if source.tools is None:
                yield from values
            else:
                yield from map(Conversation, values, _read_values(batch, source.tools, source.path))


def _text_rows(path: Path, encoding: str) -> Iterator[str]:
    # What is no text in this encoding becomes a lone surrogate, and the row it stands in counts as broken.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
    with path.open(encoding=encoding, errors=errors) as file:
        lines: list[str] = []
        length = 0
        while line := _line(file, path, encoding):
            lines.append(line)
            length += len(line)
            if length >= 2 * ROW_CHARACTERS or (length >= ROW_CHARACTERS and not line.strip()):
                yield "".join(lines)
                lines, length = [], 0
        if lines:
            yield "".join(lines)


def _line(file: IO[str], path: Path, encoding: str) -> str:
    try:
        return file.readline(2 * ROW_CHARACTERS)
    except UnicodeDecodeError:
        raise QuantmillError(f"no whole {encoding.upper()} text", path, "save it again, as UTF-8") from None


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With a read buffer a column chunk is decoded page by page; without, it is read whole.
        return pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _next(batches: Iterator[Any], path: Path) -> Any:
    import pyarrow as pa

    try:
        return next(batches, None)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> QuantmillError:
    return QuantmillError(f"no whole parquet file ({str(error)[:120]})", path, "fetch it again")


def _kind(type: pa.DataType) -> str | None:
    """`text` for strings, bytes and JSON, `messages` for a list of messages, in either form or as JSON."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(type):
        type = type.value_type
    texts = types.is_string, types.is_large_string, types.is_string_view
    blobs = types.is_binary, types.is_large_binary, types.is_binary_view
    if isinstance(type, pa.JsonType) or any(fits(type) for fits in (*texts, *blobs)):
        return "text"
    if types.is_list(type) or types.is_large_list(type):
        item = type.value_type
        names = {field.name for field in item} if types.is_struct(item) else set()
        if isinstance(item, pa.JsonType) or {"role", "content"} <= names or {"from", "value"} <= names:
            return "messages"
    return None


def _is_tools(field: pa.Field) -> bool:
    from pyarrow import types

    fits = _kind(field.type) == "text" or types.is_list(field.type) or types.is_large_list(field.type)
    return field.name == TOOLS and fits


def _guess(kinds: dict[str, str]) -> str | None:
    named = [name for name in COLUMNS if name in kinds]
    others = [name for name in kinds if name != TOOLS]
    chats = [name for name in others if kinds[name] == "messages"]
    return next((names[0] for names in (named[:1], others, chats) if len(names) == 1), None)


def _read_values(batch: pa.RecordBatch, column: str, path: Path) -> list[object]:
    import pyarrow as pa

    try:
        return list(_values(batch.column(column)))
    except pa.ArrowException as error:  # such as an index into a dictionary that has no such entry
        raise _damaged(path, error) from None


def _values(column: pa.Array) -> Iterator[object]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_nested(column.type) and not isinstance(column.type, pa.JsonType):
        # Bytes, for pyarrow would fail a whole batch over one row that is no UTF-8.
        yield from column.cast(pa.large_binary()).to_pylist()
        return
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [_read(scalar) for scalar in column]
    plain = _plainer(column.type)
    for value in values:
        if value is None or plain is None or isinstance(value, UnicodeDecodeError):
            yield value
            continue
        try:
            yield plain(value)
        except BrokenRowError as error:
            yield error


def _read(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def _plainer(type: pa.DataType) -> Callable[[Any], Any] | None:
    """What makes a value plain: its JSON parsed, no nulls that a struct has for what a row lacks; or None."""
    import pyarrow as pa

    if isinstance(type, pa.JsonType):
        return _parsed
    if pa.types.is_struct(type):
        fields = [(field.name, _plainer(field.type)) for field in type]
        return lambda row: {
            name: value if plain is None else plain(value)
            for name, plain in fields
            if (value := row[name]) is not None
        }
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        item = _plainer(type.value_type)
        return item and (lambda row: [value if value is None else item(value) for value in row])
    return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BrokenRowError("not valid JSON") from None
