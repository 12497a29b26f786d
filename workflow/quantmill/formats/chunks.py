"""The corpus file: token chunks, each with its domain and the digests of its rows.

pyarrow costs a process 36 MB of memory, and the stages that evaluate chunks
are measured by theirs: `read_chunks` has the file read by a short child process
(this module as a command), and is light itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantmill import signals
from quantmill.errors import QuantmillError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Tokens = NDArray[np.int32]

_ROW_GROUP: Final = 64


class Chunk(NamedTuple):
    """Tokens [context] of one domain, and the digests of the rows they come from."""

    domain: str
    tokens: Tokens
    rows: list[int]


def write_chunks(file: IO[bytes], chunks: Iterable[Chunk]) -> None:
    """Write the corpus parquet: the same bytes for the same chunks and pyarrow.

    Columns `chunk` int32, `domain` string, `tokens` list<int32>, `rows`
    list<uint64>.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    chunks = list(chunks)
    table = pa.table(
        {
            "chunk": pa.array(range(len(chunks)), pa.int32()),
            "domain": pa.array([chunk.domain for chunk in chunks], pa.string()),
            "tokens": pa.array([chunk.tokens for chunk in chunks], pa.list_(pa.int32())),
            "rows": pa.array([chunk.rows for chunk in chunks], pa.list_(pa.uint64())),
        }
    )
    pq.write_table(table, file, compression="zstd", row_group_size=_ROW_GROUP, write_statistics=False)


def read_chunks(path: Path, first: int, count: int) -> tuple[Tokens, list[str]]:
    """Chunks `first` to `first + count` of a corpus: tokens int32 [n, context] and their domains.

    n is less than `count` where the corpus has no more. Raises QuantmillError
    for a missing or damaged file.
    """
    command = [sys.executable, "-m", __name__, str(path), str(first), str(count)]
    child = subprocess.run(command, capture_output=True, check=False)
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().removeprefix("error: ").splitlines()
        if lines and child.returncode > 0:
            raise QuantmillError(lines[-1])
        code = child.returncode
        raise QuantmillError(f"the process that reads it {signals.how(code)}", path, signals.cure(code))
    head, _, data = child.stdout.partition(b"\n")
    domains = json.loads(head)
    tokens = np.frombuffer(data, np.int32).copy()
    return tokens.reshape(len(domains), -1 if len(domains) else 0), domains


def row_digests(path: Path) -> set[int]:
    """The digests of all rows that a corpus holds text of."""
    with _opened(path) as file:
        column = file.read(columns=["rows"]).column("rows")
        return set(column.combine_chunks().flatten().to_pylist())


def _read_in_process(path: Path, first: int, count: int) -> tuple[Tokens, list[str]]:
    with _opened(path) as file:
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        starts = ends - [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        groups = np.flatnonzero((ends > first) & (starts < first + count)).tolist()
        if not groups:
            return np.empty((0, 0), np.int32), []
        table = file.read_row_groups(groups, columns=["domain", "tokens"])
        table = table.slice(first - starts[groups[0]], count).combine_chunks()
        domains = table.column("domain").to_pylist()
        flat = table.column("tokens").combine_chunks().flatten().to_numpy()
        return flat.astype(np.int32, copy=False).reshape(len(domains), -1), domains


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """The file, while the block reads it. QuantmillError where it turns out to be damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise QuantmillError("no such corpus", path, "build it first")
    try:
        with pq.ParquetFile(path) as file:
            if not {"domain", "tokens", "rows"} <= set(file.schema_arrow.names):
                raise QuantmillError("no corpus of token chunks", path, "give one that corpus.build made")
            yield file
    except (pa.ArrowException, OSError, ValueError, AttributeError):  # or lists that are none
        raise QuantmillError("no whole parquet file", path, "delete it to have it made again") from None


def _child(arguments: list[Any]) -> None:
    """Write the domains as a line of JSON, then the tokens as they lie in memory, to stdout."""
    path, first, count = arguments
    try:
        tokens, domains = _read_in_process(Path(path), int(first), int(count))
    except QuantmillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.stdout.buffer.write(json.dumps(domains).encode() + b"\n")
    sys.stdout.buffer.write(np.ascontiguousarray(tokens).data)


if __name__ == "__main__":
    _child(sys.argv[1:])
