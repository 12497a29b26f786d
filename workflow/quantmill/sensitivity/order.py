"""The order of probes: first those that are most likely to change the allocation.

The first round probes each tensor once, at the middle type of its choices, the
largest tensors first. This gives the tensor its scale. Then come batches of the
choices with the highest expected gain; the model of predict.py is fitted again
after each batch.

At a price of bytes (nats per byte), an allocation takes for each tensor the
choice with the least kld + price * bytes. A probe has a gain where its result
changes that decision: another choice turns out to cost less than the one now
taken, or the taken one more than the next best. The gain is the difference. For
a KLD whose log is normal, its expectation is that of a put or a call option
(Black and Scholes, 1973). It is averaged over prices, from those at which nearly
all tensors have their smallest type to those at which nearly all have their
largest.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.sensitivity.predict import Flags, Floats, Prediction, Table

_PRICES: Final = 31
_erf: Final = np.frompyfunc(math.erf, 1, 1)


def first(table: Table, left: Flags) -> NDArray[np.int64]:
    """One choice of each tensor, of those `left` [n]: the middle one by size. Largest tensors first."""
    tensors = [own[left[own]] for own in _by_tensor(table)]
    middle = [own[np.argsort(table.bytes[own], kind="stable")[len(own) // 2]] for own in tensors if len(own)]
    return np.array(sorted(middle, key=lambda i: (-table.elements[i], i)), np.int64)


def following(table: Table, predicted: Prediction, kld: Floats, left: Flags, count: int) -> NDArray[np.int64]:
    """The `count` most informative choices of those `left` [n]; `kld` [n] is measured, or NaN."""
    value = np.where(np.isfinite(kld), kld, predicted.kld)
    gain = np.zeros(len(value))
    for price in prices(table, value):
        cost = value + price * table.bytes
        taken, alternative = decisions(table, cost)
        turn = alternative - price * table.bytes  # the KLD at which the decision changes
        gain += expected_gain(predicted, turn, taken) / max(float(value[taken].sum()), 1e-30)
    rest = np.flatnonzero(left)
    return rest[np.argsort(-gain[rest], kind="stable")[:count]]


def prices(table: Table, value: Floats) -> Floats:
    """Prices of a byte at which decisions change: quantiles of the slopes between neighbouring sizes."""
    slopes = []
    for own in _by_tensor(table):
        own = own[np.argsort(table.bytes[own], kind="stable")]
        more, less = np.diff(table.bytes[own]), -np.diff(value[own])
        slopes.append(less[(more > 0) & (less > 0)] / more[(more > 0) & (less > 0)])
    all_slopes = np.concatenate(slopes)
    if not len(all_slopes):
        return np.zeros(1)
    return np.quantile(all_slopes, np.linspace(0.05, 0.95, _PRICES))


def decisions(table: Table, cost: Floats) -> tuple[Flags, Floats]:
    """Which choices [n] are taken at these costs, and the cost of the alternative to each choice.

    The alternative is the taken choice; for the taken choice it is the next best
    one (infinite cost where there is none).
    """
    taken, alternative = np.zeros(len(cost), bool), np.empty(len(cost))
    for own in _by_tensor(table):
        order = own[np.argsort(cost[own], kind="stable")]
        taken[order[0]] = True
        alternative[own] = cost[order[0]]
        alternative[order[0]] = cost[order[1]] if len(order) > 1 else np.inf
    return taken, alternative


def expected_gain(predicted: Prediction, turn: Floats, taken: Flags) -> Floats:
    """E[max(0, turn - kld)] of choices not taken, E[max(0, kld - turn)] of those taken [n], nats."""
    spread = np.sqrt(predicted.variance)
    mean = np.exp(predicted.log + predicted.variance / 2)
    alone = np.isinf(turn)
    possible = np.where(alone, 1.0, np.maximum(turn, 1e-300))  # a KLD below 0 is not to be had
    upper = (predicted.log - np.log(possible) + predicted.variance) / spread
    call = mean * _normal(upper) - possible * _normal(upper - spread)
    return np.maximum(np.where(taken, call, call - mean + possible), 0.0) * ~alone


def _normal(z: Floats) -> Floats:
    """The normal distribution function."""
    return 0.5 * (1 + np.asarray(_erf(z / math.sqrt(2)), np.float64))


def _by_tensor(table: Table) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(table.tensor == tensor) for tensor in range(len(table.roles))]
