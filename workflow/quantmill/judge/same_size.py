"""The same-size comparison: the best file of this model and of another within each band of size.

Another model's figures come from its own results, or from a table of published
ones: CSV with a header of the columns `file`, one of `bytes`, `gib`, `gb`, and
`humaneval` (pass@1, a share) or `kld` (nats, from its own source) or both.
Perplexities are no column: on another text or tokenizer they do not compare.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Final

from quantmill.errors import QuantmillError
from quantmill.files import read_user_text
from quantmill.formats.allocation import PLAN
from quantmill.formats.measurements import DIVERGENCE
from quantmill.formats.measurements import HUMANEVAL as HUMANEVAL_REPORT
from quantmill.formats.publication import FACTS
from quantmill.judge import compare, frontier
from quantmill.judge.quant import Quant
from quantmill.judge.results import Results
from quantmill.judge.scores import HUMANEVAL, scores_of
from quantmill.measures import MEASURES
from quantmill.text import GIB

UNITS: Final = {"bytes": 1, "gib": GIB, "gb": 10**9}
FIGURES: Final = ("humaneval", "kld")

_BANDS_AN_OCTAVE = 2


@dataclass(frozen=True)
class Entry:
    """A file: name, bytes, and its score and KL divergence where they are known."""

    name: str
    bytes: int
    score: compare.Score | None
    kld: float | None


@dataclass(frozen=True)
class Band:
    """The best file of ours and of theirs between two sizes (bytes); None where a model has none there."""

    low: float
    high: float
    ours: Entry | None
    theirs: Entry | None

    @property
    def verdict(self) -> str:
        """By HumanEval, where both were measured with an interval; empty otherwise."""
        if not (self.ours and self.theirs and self.ours.score and self.theirs.score):
            return ""
        if self.theirs.score.low == self.theirs.score.high:
            return ""
        return compare.scores(self.ours.score, self.theirs.score).verdict


def ours(results: Results) -> list[Entry]:
    """This model's files."""
    return [
        Entry(quant.name, quant.bytes, quant.scores.get(HUMANEVAL), _divergence(quant))
        for quant in results.quants
        if not frontier.collapse(quant, results)
    ]


def _divergence(quant: Quant) -> float | None:
    return quant.divergence.mean if quant.divergence else None


def bands(ours: Iterable[Entry], theirs: Iterable[Entry]) -> list[Band]:
    """Bands of half an octave that any file lies in, largest first, with the best of each side."""
    left, right = _by_band(ours), _by_band(theirs)
    return [
        Band(_edge(band), _edge(band + 1), left.get(band), right.get(band))
        for band in sorted({*left, *right}, reverse=True)
    ]


def read_competitor(path: Path) -> list[Entry]:
    """The files of a competing model: a folder of results, or a CSV. QuantmillError for a broken one."""
    return _read_results(path) if path.is_dir() else read_csv(path)


def read_csv(path: Path) -> list[Entry]:
    """Published figures. QuantmillError for unknown or missing columns, and for what is no number."""
    rows = csv.DictReader(StringIO(read_user_text(path), newline=""))
    try:
        return _entries(rows, path)
    except csv.Error as error:
        what = f"no comma-separated values ({error})"
        raise QuantmillError(what, f"{path}: line {rows.line_num}", "put it right") from None


def _entries(rows: csv.DictReader[str], path: Path) -> list[Entry]:
    columns = rows.fieldnames or []
    known = ("file", *UNITS, *FIGURES)
    if unknown := [column for column in columns if column not in known]:
        message = f"unknown column {unknown[0] or '(no name)'}"
        raise QuantmillError(message, f"{path}: line 1", f"known are {', '.join(known)}")
    units = [unit for unit in UNITS if unit in columns]
    if "file" not in columns or len(units) != 1 or not set(columns) & set(FIGURES):
        cure = "it needs file, one of bytes, gib and gb, and humaneval or kld"
        raise QuantmillError(f"the columns are {', '.join(columns) or 'none'}", f"{path}: line 1", cure)
    entries = []
    for row in rows:
        where = f"{path}: line {rows.line_num}"
        if None in row or None in row.values():
            raise QuantmillError(f"not {len(columns)} columns", where, "give each row as many as the header")
        score, kld = (_number(row.get(figure) or "", figure, where) for figure in FIGURES)
        bytes_ = _number(row[units[0]], units[0], where)
        size = (bytes_ or 0) * UNITS[units[0]]
        if not bytes_:
            raise QuantmillError(f"{units[0]} is missing", where, "give the file's size")
        if not 1 <= size < 1 << 63:
            raise QuantmillError(f"{units[0]} is {bytes_:g}", where, "give the size of a file")
        if score is not None and score > 1:
            raise QuantmillError(f"humaneval is {score:g}", where, "give a share, such as 0.62 for 62 %")
        entry = Entry(row["file"], round(size), None, kld)
        if score is not None:
            entry = Entry(entry.name, entry.bytes, compare.Score(score, score, score, "as published"), kld)
        entries.append(entry)
    if not entries:
        raise QuantmillError("no rows", path, "give a row a file")
    return entries


def _read_results(folder: Path) -> list[Entry]:
    facts = sorted((folder / "gguf").glob(f"{folder.resolve().name}-*.json"))
    if not facts:
        raise QuantmillError("no results of a model", folder, "name the folder results/<model>")
    entries = []
    for path in facts:
        name, file = path.stem.removeprefix(f"{folder.resolve().name}-"), FACTS.read(path)
        plan = folder / "plans" / f"{name}.json"
        if plan.is_file() and PLAN.read(plan).get("mtp") == "only":
            continue
        kld, humaneval = (folder / MEASURES[measure].path(name) for measure in ("kld", "humaneval"))
        score = scores_of(HUMANEVAL_REPORT.read(humaneval), None)[HUMANEVAL] if humaneval.is_file() else None
        divergence = DIVERGENCE.read(kld)["kld"]["mean"] if kld.is_file() else None
        entries.append(Entry(name, file["bytes"], score, divergence))
    return entries


def _number(text: str, column: str, where: str) -> float | None:
    """A number of 0 or more; None for an empty cell."""
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise QuantmillError(f"{column} is {text!r}", where, "give a number of 0 or more, or nothing")
    return value


def _by_band(entries: Iterable[Entry]) -> dict[int, Entry]:
    """The best of each band: by score, then by divergence, then the largest."""
    return {
        math.floor(_BANDS_AN_OCTAVE * math.log2(entry.bytes)): entry
        for entry in sorted(entries, key=_quality)
    }


def _quality(entry: Entry) -> tuple[float, float, int]:
    score = entry.score.value if entry.score else -1.0
    return score, -(math.inf if entry.kld is None else entry.kld), entry.bytes


def _edge(band: int) -> float:
    return float(2 ** (band / _BANDS_AN_OCTAVE))
