"""Statistics of the card: paired differences of perplexity, verdicts, the frontier of size and quality.

Pure functions of what `bench/<recipe>/perplexity.json` holds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantmill.errors import QuantmillError

BETTER, WORSE, SAME, FEW = "better", "worse", "not distinguishable", "too few chunks to tell"
MIN_CHUNKS = 4
"""Below it a t interval says nothing worth printing (3 degrees of freedom: t = 3.2)."""

ABSURD_PERPLEXITY = 1000.0
"""A model that reads its own kind of text is far below; above it the text or the run is at fault."""


@dataclass(frozen=True)
class Difference:
    """ln(PPL / PPL of the reference) from chunks that both have seen, with its standard error.

    `low` and `high` bound the two-sided 95 % t interval of `ln_ratio`.
    """

    ln_ratio: float
    error: float
    low: float
    high: float
    chunks: int

    @property
    def percent(self) -> float:
        """The change of perplexity in percent of the reference's."""
        return 100 * math.expm1(self.ln_ratio)

    @property
    def percent_error(self) -> float:
        """The standard error of `percent`, to first order."""
        return 100 * math.exp(self.ln_ratio) * self.error

    @property
    def percent_interval(self) -> tuple[float, float]:
        """The 95 % interval of `percent`."""
        return 100 * math.expm1(self.low), 100 * math.expm1(self.high)

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the 95 % interval leaves out zero, in words otherwise."""
        if self.chunks < MIN_CHUNKS:
            return FEW
        if self.low > 0:
            return WORSE
        return BETTER if self.high < 0 else SAME


def paired(ours: dict[str, Any], reference: dict[str, Any], where: str = "perplexity.json") -> Difference:
    """The paired difference of two perplexity.json, chunk by chunk.

    Perplexity is exp of the mean nll of equally long chunks, so ln of the
    ratio of two is the mean of the chunks' differences, and its standard error
    is their sd / sqrt(chunks). What the text itself makes hard cancels, which
    is why it is far smaller than the error of either perplexity. Raises
    QuantmillError (naming `where`) unless both saw the same chunks.
    """
    for field in ("corpus", "context", "chunks"):
        if ours[field] != reference[field]:
            raise QuantmillError(
                f"{field} differs from the reference's ({ours[field]}, not {reference[field]})",
                where,
                "delete it to have it measured again",
            )
    differences = [a - b for a, b in zip(ours["nll"], reference["nll"], strict=True)]
    n = len(differences)
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else 0.0
    reach = t_quantile(n - 1) * error if n > 1 else 0.0
    return Difference(mean, error, mean - reach, mean + reach, n)


def t_quantile(freedom: int, p: float = 0.975) -> float:
    """Quantile of Student's t: Abramowitz and Stegun 26.7.5, within 0.5 % from 3 degrees of freedom on."""
    z = statistics.NormalDist().inv_cdf(p)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (size, loss), whether no other point is as small and as good, and better in one of both."""
    return [
        not any(a <= size and b <= loss and (a, b) != (size, loss) for a, b in points)
        for size, loss in points
    ]
