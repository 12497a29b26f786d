"""Make the example corpora from what is installed: `python examples/corpora/make.py`.

Code is Python's standard library, prose the English files of dataset_build. The
files are the same bytes for the same Python, dataset_build and pyarrow; they are
committed, and this is how they came about. See README.md for the licences.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from importlib.metadata import files
from itertools import chain, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
ROW = 3000  # characters at which a row is full
CALIBRATION, TUNING, HELD_OUT = 480_000, 120_000, 240_000  # characters a file

# Modules of the standard library by their own authors for Python, each in one part only.
CODE = {
    "calibration": (
        "argparse asyncio/base_events asyncio/tasks bdb calendar cmd compileall configparser "
        "contextlib csv dataclasses difflib dis enum fileinput fractions gettext http/client "
        "inspect json/decoder json/encoder mailbox pathlib pdb pickle plistlib"
    ),
    "tuning": "asyncio/events cProfile imaplib lzma netrc pydoc sqlite3/dump urllib/request zipfile",
    "held-out": (
        "asyncio/streams collections/__init__ doctest fnmatch glob graphlib "
        "gzip locale pprint queue random reprlib sched selectors shelve "
        "shutil smtplib statistics string tempfile threading tokenize traceback typing unittest/case"
    ),
}
PROSE = ("eng", "history", "philosophy", "religion", "jobs", "weird")


def code_rows(part: str) -> list[str]:
    """Whole statements of the modules of a part, gathered into rows of about ROW characters.

    A module with a notice of its own, beside that of Python, is left out.
    """
    rows = []
    for module in CODE[part].split():
        text = (Path(sysconfig.get_paths()["stdlib"]) / f"{module}.py").read_text("utf-8")
        if not re.search(r"copyright|licen[sc]e", text, re.IGNORECASE):
            rows += gathered(statements(text))
    return rows


def statements(text: str) -> list[str]:
    """The statements of a module, those of its classes too, with the comments before; joined, they are it."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for top in ast.parse(text).body[1:]:
        for node in [top, *(top.body[1:] if isinstance(top, ast.ClassDef) else [])]:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
            while lines[first - 1].lstrip().startswith("#"):
                first -= 1
            starts.append(first)
    return ["".join(lines[a:b]) for a, b in pairwise([*starts, len(lines)])]


def prose_rows() -> list[str]:
    """Paragraphs gathered into rows of about ROW characters; the model's greeting before them is left out."""
    rows = []
    for name in PROSE:
        listed = [f for f in files("dataset_build") or [] if f.match(f"data/eng/{name}.txt")]
        text = Path(str(listed[0].locate())).read_text(encoding="utf-8").replace("\r\n", "\n")
        text = re.sub(r"\AOf course\..*\n+(\*\*\*\n+)?", "", text)
        rows += gathered(re.split(r"(?<=\n)(?=\n)|(?<=\n\n)", text))
    return rows


def gathered(pieces: list[str]) -> list[str]:
    """Pieces joined until a row holds ROW characters, a piece twice as long cut at its line ends."""
    rows, current = [], ""
    lined = [[piece] if len(piece) < 2 * ROW else piece.splitlines(keepends=True) for piece in pieces]
    for piece in chain.from_iterable(lined):
        current += piece
        if len(current) >= ROW:
            rows.append(current.strip("\n"))
            current = ""
    return [row for row in [*rows, current.strip("\n")] if row]


def first_characters(rows: list[str], characters: int) -> list[str]:
    """Rows spread evenly over all of them that hold about so many characters."""
    total = sum(map(len, rows))
    kept, held, passed = [], 0, 0
    for row in rows:
        passed += len(row)
        if held * total < passed * min(characters, total):
            kept.append(row)
            held += len(row)
    return kept


def write(name: str, rows: list[str]) -> None:
    """Write one parquet file with a column `content`."""
    table = pa.table({"content": pa.array(rows, pa.string())})
    path = HERE / f"{name}.parquet"
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=False)
    print(f"{path.name}: {len(rows)} rows, {sum(map(len, rows))} characters, {path.stat().st_size} bytes")


if __name__ == "__main__":
    prose = prose_rows()
    write("calibration-code", first_characters(code_rows("calibration"), CALIBRATION))
    write("tuning-code", first_characters(code_rows("tuning"), TUNING))
    write("held-out-code", first_characters(code_rows("held-out"), HELD_OUT))
    # Every third row is held out: the same subjects, other passages. Of the others
    # what the calibration leaves is for tuning.
    others = [row for i, row in enumerate(prose) if i % 3]
    calibration = first_characters(others, CALIBRATION)
    left = [row for row in others if row not in set(calibration)]
    write("calibration-prose", calibration)
    write("tuning-prose", first_characters(left, TUNING))
    write("held-out-prose", first_characters(prose[::3], HELD_OUT))
