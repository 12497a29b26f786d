"""The report of a corpus: what was read, what was used, what was wrong."""

from typing import Annotated, Final, TypedDict

from quantmill.formats.report import Report


class BrokenRows(TypedDict):
    """Rows that are broken in one way."""

    reason: Annotated[str, "in words"]
    rows: int
    first: Annotated[int, "the number of the first, from 1"]


class CorpusSource(TypedDict):
    """One file of a corpus."""

    name: str
    file: Annotated[str, "base name"]
    sha256: str
    column: str | None
    rows_read: int
    rows_used: int
    rows_broken: int
    rows_duplicate: int
    rows_empty: int
    rows_joined: Annotated[int, "used ones whose system message stands in the first user turn"]
    rows_cut: Annotated[int, "used ones that were cut short, see [corpora.md](corpora.md)"]
    broken: Annotated[list[BrokenRows], "most rows first"]
    characters: int
    tokens: int
    chunks: int
    share_wanted: float
    share_got: float


class Corpus(TypedDict):
    """A corpus as it was built for a model."""

    corpus: str
    seed: int
    context: Annotated[int, "tokens of a chunk"]
    chunks: int
    tokens: int
    sources: list[CorpusSource]
    warnings: list[str]


CORPUS: Final = Report[Corpus]("corpus/<corpus>.json", "corpus.build", (Corpus,), "What the corpus holds.")
