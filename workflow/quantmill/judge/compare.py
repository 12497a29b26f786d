"""The statistics of comparisons: paired differences, verdicts, the frontier of size and quality.

Pure functions of what `bench/<recipe>/perplexity.json` and `kld.json` hold.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from quantmill.errors import QuantmillError
from quantmill.formats.measurements import Divergence, Embeddings, Perplexity, Rate
from quantmill.formats.projected import Projected

BETTER, WORSE, SAME, FEW = "better", "worse", "not distinguishable", "too few chunks to tell"
"""The verdicts. `better` and `worse` mean significantly: the 95 % interval does not contain zero."""

Z_95: Final = 1.96
"""Half the width of a two-sided 95 % interval, in standard errors of a normal distribution."""

MIN_CHUNKS: Final = 4
"""With fewer chunks a t interval is too wide to be of use (3 degrees of freedom: t = 3.2)."""


@dataclass(frozen=True)
class Paired:
    """A mean (nats) over chunks that two files have both seen, with its standard error.

    `low` and `high` bound its two-sided 95 % interval. More is worse.
    """

    mean: float
    error: float
    low: float
    high: float
    chunks: int

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the 95 % interval does not contain zero, otherwise `SAME` or `FEW`."""
        if self.chunks < MIN_CHUNKS:
            return FEW
        if self.low > 0:
            return WORSE
        return BETTER if self.high < 0 else SAME


class Difference(Paired):
    """ln(PPL / PPL of the reference)."""

    @property
    def ln_ratio(self) -> float:
        """The difference itself."""
        return self.mean

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


def paired(ours: Perplexity, reference: Perplexity, where: str = "perplexity.json") -> Difference:
    """The paired difference of two perplexity.json, chunk by chunk.

    Perplexity is exp of the mean nll of equally long chunks, so ln of the
    ratio of two is the mean of the chunks' differences, and its standard error
    is their sd / sqrt(chunks); the interval is Student's. What the text itself
    makes hard cancels, which is why it is far smaller than the error of either
    perplexity. Raises QuantmillError (naming `where`) unless both saw the same
    chunks.
    """
    _check_same(ours, reference, ("corpus", "context", "chunks"), where)
    mean, error, n = _mean(ours["nll"], reference["nll"])
    if n < 2:
        return Difference(mean, error, mean, mean, n)
    from scipy.special import stdtrit

    half_width = float(stdtrit(n - 1, 0.975)) * error
    return Difference(mean, error, mean - half_width, mean + half_width, n)


def divergence(ours: Divergence, other: Divergence, where: str = "kld.json") -> Paired:
    """The paired difference of two kld.json: the mean KL divergence of the one less that of the other.

    Its interval is a bootstrap over the chunks (BCa: B. Efron, "Better Bootstrap
    Confidence Intervals", 1987, as scipy has it), for divergences are far from
    normal: a few chunks hold most of them. The source's own divergence is 0, so
    beside the source it is the interval of the divergence itself. The resamples
    are always the same ones. Raises QuantmillError (naming `where`) unless both saw the same
    chunks and were compared with the same reference.
    """
    check_same_chunks(ours, other, where)
    return _bootstrapped(ours["by_chunk"]["kld"], other["by_chunk"]["kld"])


def distance(ours: Embeddings, other: Embeddings, where: str = "embeddings.json") -> Paired:
    """The paired difference of two embeddings.json: the mean distance of the one less that of the other.

    Its interval is a bootstrap over the texts, as that of `divergence`, and QuantmillError likewise.
    """
    _check_same(ours, other, ("corpus", "context", "chunks", "reference_sha256"), where)
    return _bootstrapped(ours["by_chunk"]["distance"], other["by_chunk"]["distance"])


def projected(ours: Projected, other: Projected, where: str = "projector.json") -> Paired:
    """The same of two projector.json, over the vectors of all pictures and sounds."""
    _check_same(ours, other, ("media", "reference_sha256"), where)
    return _bootstrapped(ours["by_vector"], other["by_vector"])


def _bootstrapped(ours: list[float], other: list[float]) -> Paired:
    """The mean of the differences chunk by chunk, with its interval."""
    mean, error, n = _mean(ours, other)
    if error == 0:
        return Paired(mean, error, mean, mean, n)
    # scipy.stats takes most of a second to import
    import numpy as np
    from scipy.stats import bootstrap

    differences = np.subtract(ours, other)
    generator = np.random.default_rng(0)
    resampled = bootstrap((differences,), np.mean, n_resamples=_RESAMPLES, method="BCa", rng=generator)
    interval = resampled.confidence_interval
    return Paired(mean, error, float(interval.low), float(interval.high), n)


_RESAMPLES = 9999


class Ratio(Paired):
    """The ratio of two mean divergences, less 1."""

    @property
    def ratio(self) -> float:
        """The ratio itself."""
        return 1 + self.mean

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval."""
        return 1 + self.low, 1 + self.high


def ratio(ours: Sequence[float], other: Sequence[float]) -> Ratio | None:
    """The ratio of the means of two divergences on the same chunks; None where the other's is not above 0.

    Its interval is a bootstrap over the chunks, as that of `divergence`, in which both means vary: it is
    narrow where the one is about the same share of the other on every chunk, however far the chunks differ.
    """
    import numpy as np
    from scipy.stats import bootstrap

    a, b = np.asarray(ours, float), np.asarray(other, float)
    if not a.size or b.mean() <= 0:
        return None
    mean = float(a.mean() / b.mean()) - 1
    rest = a - (1 + mean) * b  # what is not the same share on every chunk
    if a.size < 2 or np.allclose(rest, 0, rtol=0, atol=1e-9 * a.max()):
        return Ratio(mean, 0.0, mean, mean, a.size)
    error = float(rest.std(ddof=1) / math.sqrt(a.size) / b.mean())
    resampled = bootstrap(
        (a, b),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis) - 1,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    interval = resampled.confidence_interval
    return Ratio(mean, error, float(interval.low), float(interval.high), a.size)


def check_same_chunks(ours: Divergence, other: Divergence, where: str) -> None:
    """QuantmillError (naming `where`) unless both are of the same chunks and from the same reference."""
    _check_same(ours, other, ("corpus", "context", "chunks", "reference_sha256"), where)


def _check_same(
    ours: Mapping[str, Any], other: Mapping[str, Any], fields: tuple[str, ...], where: str
) -> None:
    for field in fields:
        if ours[field] != other[field]:
            raise QuantmillError(
                f"{field} differs from the reference's ({ours[field]}, not {other[field]})",
                where,
                "delete it to have it measured again",
            )


def _mean(ours: list[float], other: list[float]) -> tuple[float, float, int]:
    """The mean of the chunks' differences, its standard error, and how many they are."""
    differences = [a - b for a, b in zip(ours, other, strict=True)]
    n = len(differences)
    error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else 0.0
    return statistics.fmean(differences), error, n


@dataclass(frozen=True)
class Score:
    """A share of right answers with its two-sided 95 % interval. More is better.

    `passes` says of each question whether it was answered rightly, where that is known.
    """

    value: float
    low: float
    high: float
    words: str
    passes: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Interval:
    """A difference of two figures of which more is better, with its two-sided 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval does not contain zero, otherwise `SAME`."""
        if self.low > 0:
            return BETTER
        return WORSE if self.high < 0 else SAME


def scores(ours: Score, other: Score) -> Interval:
    """The difference of two shares, from the interval of each.

    Square and add: R. G. Newcombe, "Improved confidence intervals for the
    difference between binomial proportions based on paired data", 1998, method
    10: what the two have in common, by the questions that both answered, makes
    it narrower. Where those questions are not known, the shares count as independent
    (his method 10 of "Interval estimation for the difference between
    independent proportions", 1998), which is rather too wide.
    """
    difference, common = ours.value - other.value, _common(ours.passes, other.passes)
    ours_down, ours_up = ours.value - ours.low, ours.high - ours.value
    other_down, other_up = other.value - other.low, other.high - other.value
    down = math.sqrt(ours_down**2 - 2 * common * ours_down * other_up + other_up**2)
    up = math.sqrt(ours_up**2 - 2 * common * ours_up * other_down + other_down**2)
    return Interval(difference, difference - down, difference + up)


def shares(ours: tuple[int, int], other: tuple[int, int]) -> Interval:
    """The difference of two independent shares, each so many of so many.

    A. Agresti, B. Caffo, "Simple and effective confidence intervals for proportions and differences of
    proportions", 2000: one of each kind is added to both, so that few of few say little.
    """
    (a, p), (b, q) = (((some + 1) / (of + 2), of + 2) for some, of in (ours, other))
    half_width = Z_95 * math.sqrt(a * (1 - a) / p + b * (1 - b) / q)
    return Interval(a - b, a - b - half_width, a - b + half_width)


def _common(ours: Sequence[bool], other: Sequence[bool]) -> float:
    """Newcombe's phi of paired answers, with his continuity correction; 0 where they are no pairs."""
    if not ours or len(ours) != len(other):
        return 0.0
    both, mine, theirs, none = (
        sum(pair == kind for pair in zip(ours, other, strict=True))
        for kind in ((True, True), (True, False), (False, True), (False, False))
    )
    margins = (both + mine) * (theirs + none) * (both + theirs) * (mine + none)
    if margins == 0:
        return 0.0
    product = float(both * none - mine * theirs)
    if product > 0:
        product = max(product - len(ours) / 2, 0.0)
    return product / math.sqrt(margins)


def rates(ours: Rate, other: Rate) -> Interval:
    """How much faster, as a share of the other's rate: one half of two speed.json; Welch's interval.

    A single run does not show how much runs differ: then nothing is significant.
    """
    from scipy.special import stdtrit

    parts = [one["sd"] ** 2 / len(one["samples"]) for one in (ours, other)]
    free = [max(1, len(one["samples"]) - 1) for one in (ours, other)]
    error, difference = math.sqrt(sum(parts)), ours["mean"] - other["mean"]
    if min(len(one["samples"]) for one in (ours, other)) < 2:
        return Interval(difference / other["mean"], -math.inf, math.inf)
    if error == 0:
        return Interval(*[difference / other["mean"]] * 3)
    freedom = sum(parts) ** 2 / sum(part**2 / n for part, n in zip(parts, free, strict=True))
    half_width = float(stdtrit(freedom, 0.975)) * error
    return Interval(
        *(value / other["mean"] for value in (difference, difference - half_width, difference + half_width))
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (size, loss), whether no other point is as small and as good, and better in one of both."""
    return [
        not any(a <= size and b <= loss and (a, b) != (size, loss) for a, b in points)
        for size, loss in points
    ]
