"""The report of a corpus: what was read, what was used, what was wrong; and the order of its chunks."""

from collections.abc import Sequence
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


def interleave(counts: Sequence[int]) -> list[int]:
    """The source of each chunk, so that any window holds the sources at their shares.

    Error diffusion: at each place the source that is furthest behind its share
    is next. In whole numbers, so that no rounding differs between machines.
    """
    total = sum(counts)
    given = [0] * len(counts)
    order = []
    for place in range(1, total + 1):
        furthest = max(range(len(counts)), key=lambda i: (counts[i] * place - total * given[i], -i))
        given[furthest] += 1
        order.append(furthest)
    return order


def domains(corpus: Corpus) -> list[str]:
    """The domain of each chunk, which is the name of its source."""
    names = [source["name"] for source in corpus["sources"]]
    return [names[source] for source in interleave([source["chunks"] for source in corpus["sources"]])]
