"""The corpus file, written and read back."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest

from quantmill.errors import QuantmillError
from quantmill.formats.chunks import Chunk, read_chunks, row_digests, write_chunks

CONTEXT = 16
CHUNKS = [
    Chunk(["code", "prose"][i % 2], np.arange(i, i + CONTEXT, dtype=np.int32) * 1001, [i, 2**64 - 1 - i])
    for i in range(150)
]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "held out.parquet"
    with path.open("wb") as file:
        write_chunks(file, CHUNKS)
    return path


@pytest.mark.parametrize(
    ("first", "count", "n"), [(0, 150, 150), (60, 10, 10), (149, 9, 1), (150, 1, 0), (0, 0, 0)]
)
def test_any_run_of_chunks_is_read(corpus, first, count, n):
    tokens, domains = read_chunks(corpus, first, count)
    assert (tokens.dtype, len(tokens), len(domains)) == (np.int32, n, n)
    assert domains == [chunk.domain for chunk in CHUNKS[first : first + n]]
    assert all(
        (row == chunk.tokens).all() for row, chunk in zip(tokens, CHUNKS[first : first + n], strict=True)
    )


def test_the_rows_of_all_chunks_are_known(corpus):
    assert row_digests(corpus) == {row for chunk in CHUNKS for row in chunk.rows}


def test_the_same_chunks_are_the_same_bytes():
    first, second = io.BytesIO(), io.BytesIO()
    write_chunks(first, CHUNKS)
    write_chunks(second, iter(CHUNKS))
    assert first.getvalue() == second.getvalue()


def test_the_reader_does_not_load_pyarrow():
    code = "import sys, quantmill.formats.chunks; sys.exit(any('pyarrow' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0


def test_a_reader_that_is_killed_is_one_line(corpus, tmp_path, monkeypatch):
    reader = tmp_path / "python"
    reader.write_text("#!/bin/sh\nkill -9 $$\n", encoding="utf-8")
    reader.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(reader))
    with pytest.raises(
        QuantmillError, match=r"held out\.parquet: the process that reads it ended by SIGKILL; "
    ):
        read_chunks(corpus, 0, 1)


def test_a_missing_a_truncated_and_a_foreign_file_are_refused(corpus, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(QuantmillError, match="no such corpus; build it first"):
        read_chunks(tmp_path / "no.parquet", 0, 1)
    corpus.write_bytes(corpus.read_bytes()[:-9])
    with pytest.raises(QuantmillError, match=r"held out\.parquet: no whole parquet file"):
        read_chunks(corpus, 0, 1)
    pq.write_table(pa.table({"content": ["x"]}), corpus)
    with pytest.raises(QuantmillError, match="no corpus of token chunks"):
        row_digests(corpus)
