"""The statistics of measurements: means with their errors, by llama-perplexity's formula, and percentiles."""

from __future__ import annotations

import math
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from quantmill.formats.statistics import Distribution, Mean

Numbers = NDArray[np.float64]

_QUANTILES: Final = (99.9, 99, 95, 90, 75, 25, 10, 5, 1, 0.1)


def mean(values: Numbers) -> Mean:
    """The mean and its standard error, by llama-perplexity's formula."""
    error = math.sqrt(values.var() / (len(values) - 1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "error": error}


def distribution(values: Numbers) -> Distribution:
    """The mean with its error, the extremes, and percentiles, interpolated between the two nearest."""
    values_at = np.percentile(values, _QUANTILES)
    named = {f"{percent:g}%": float(value) for percent, value in zip(_QUANTILES, values_at, strict=True)}
    extremes = {"max": float(values.max()), "median": float(np.median(values)), "min": float(values.min())}
    return cast(Distribution, {**mean(values), **named, **extremes})
