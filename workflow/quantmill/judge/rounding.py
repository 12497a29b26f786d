"""Files of rounding gptq beside the same types rounded to nearest, by domain.

Error feedback learns from a text. What it gains there may be lost elsewhere, which the mean over all
domains would hide. So the acceptance test looks at each domain: a file is rejected where it is
significantly (95 %, paired on the same chunks) worse on any.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantmill.formats.corpus import Corpus, domains
from quantmill.judge import compare
from quantmill.judge.quant import Quant
from quantmill.text import code


@dataclass(frozen=True)
class OnDomain:
    """Mean divergences (nats) on the chunks of a domain: the file's, that of nearest, and their ratio.

    `domain` is empty for all chunks; `ratio` is None where that of nearest is not above 0.
    """

    domain: str
    chunks: int
    kld: float
    nearest: float
    ratio: compare.Ratio | None

    @property
    def verdict(self) -> str:
        """One of the verdicts of `compare`."""
        return self.ratio.verdict if self.ratio else compare.SAME


@dataclass(frozen=True)
class Rounded:
    """A file of rounding gptq on all chunks, and on each domain where there are several."""

    quant: Quant
    rows: tuple[OnDomain, ...]

    @property
    def worse(self) -> list[OnDomain]:
        """Where it is significantly worse than nearest."""
        return [row for row in self.rows if row.verdict == compare.WORSE]

    @property
    def rejected(self) -> bool:
        """Whether it failed the acceptance test."""
        return bool(self.worse)

    @property
    def why(self) -> str:
        """Why it is not recommended, in words (markdown)."""
        names = [code(row.domain) for row in self.worse if row.domain]
        on = (
            f"on {' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)} " if names else ""
        )
        return f"{on}significantly worse than the same types rounded to nearest"

    @property
    def verdict(self) -> str:
        """The same as a note about the file."""
        return f"**not recommended: {self.why}**"


def rounded(quants: Iterable[Quant], corpora: Mapping[str, Corpus]) -> list[Rounded]:
    """The files that can be compared, each with its rows; `corpora` are the reports by name."""
    return [
        Rounded(quant, _rows(ours["by_chunk"]["kld"], nearest["by_chunk"]["kld"], corpora[ours["corpus"]]))
        for quant in quants
        if quant.divergence and (ours := quant.measured["kld"]) and (nearest := quant.nearest)
    ]


def _rows(ours: Sequence[float], nearest: Sequence[float], corpus: Corpus) -> tuple[OnDomain, ...]:
    # Measured are the first chunks of the corpus.
    places: dict[str, list[int]] = {}
    for number, domain in enumerate(domains(corpus)[: len(ours)]):
        places.setdefault(domain, []).append(number)
    if len(places) > 1:
        places = {"": list(range(len(ours)))} | places
    return tuple(
        _row(domain, [ours[i] for i in at], [nearest[i] for i in at]) for domain, at in places.items()
    )


def _row(domain: str, ours: list[float], nearest: list[float]) -> OnDomain:
    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    return OnDomain(domain, len(ours), mean(ours), mean(nearest), compare.ratio(ours, nearest))
