"""Predicts the KLD of choices that were not probed, from the error table and the probes.

The KLD of tensor t at type q is modelled as

    kld = A_t (noise + R_t bias^2) ^ P_t

where error = noise + bias^2 comes from the error table. Noise is the random
change of each weight; bias is how much the whole tensor is shrunk or stretched.
At the same energy, bias costs R_t times as much as noise, since it does not
average out over a row. (Measured: R is up to 200. Without it, the errors of q2_K
and iq3_s, which have a bias, mislead.) P is near 1. It is less where a model has
routers: the number of changed expert choices grows with the root of the error.

log A, log R and P of each tensor have normal priors that the tensors of the
model share (for A, those of one role). The likelihood of a probe is normal in
log KLD. R and P are integrated over a grid, A in closed form. The priors are
fitted to the probes (empirical Bayes, expectation maximization). So a tensor
without a probe is predicted from its role, one with a single probe by scaling
its error table, one with more probes by its own curve. Each prediction has a
standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_LOG_R: Final = np.linspace(-2.0, 8.0, 31)
_P: Final = np.linspace(0.4, 1.2, 17)
_START_LOG_R: Final = 2.5
_START_P: Final = 1.0
_STARTS: Final = 3  # the weight of these two, in tensors
_ROUNDS: Final = 8
_LEAST: Final = 1e-12  # nats: a smaller KLD is rounding error
_MOST_VARIANCE: Final = 1.0  # of a log: above it exp(variance) has no meaning
# Limits of the model's own error. More is noise that the standard errors of few chunks do not show.
_MISFIT: Final = (0.1, 0.3)


@dataclass(frozen=True)
class Table:
    """The choices as arrays [n]: which tensor (counted from 0), bytes, elements, noise and bias^2.

    `roles` [tensors].
    """

    tensor: NDArray[np.int64]
    roles: Sequence[str]
    bytes: Floats
    elements: Floats
    noise: Floats
    bias2: Floats


class Parameters(TypedDict):
    """The fitted parameters, as the report has them."""

    bias_factor: float
    exponent: float
    misfit: float
    spread: float
    probes: int


@dataclass(frozen=True)
class Prediction:
    """Log KLD of every choice [n], its variance, and the fitted parameters.

    `more` [n]: the part of its KLD that a choice costs additionally where noise is added, else 0.
    """

    log: Floats
    variance: Floats
    parameters: Parameters
    more: Floats | float = 0.0

    @property
    def kld(self) -> Floats:
        """The expected KLD [n], nats."""
        return np.exp(self.log + self._bounded / 2)

    @property
    def se(self) -> Floats:
        """The standard deviation of the KLD [n], nats."""
        return self.kld * np.sqrt(np.expm1(self._bounded))

    def combined(self, kld: Floats, se: Floats) -> Floats:
        """The measured `kld` [n] (nats, with its `se`), combined with the prediction, in nats.

        The logs are weighted by their precisions (empirical Bayes). Without this,
        an allocation would prefer choices whose few chunks happened to give a low
        KLD. `kld` is unchanged where it was not measured (NaN), where it is exact
        (an `se` of 0), of one chunk (no `se`), or not above 0 (no log).
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            noise2 = np.minimum(se / kld, 1.0) ** 2
            trust = self.parameters["misfit"] ** 2 / (self.parameters["misfit"] ** 2 + noise2)
            combined = np.exp(trust * np.log(kld) + (1 - trust) * self.log)
            usable = (kld > 0) & (se > 0)
        return np.where(usable, combined, kld)

    @property
    def _bounded(self) -> Floats:
        return np.minimum(self.variance, _MOST_VARIANCE)


@dataclass
class _Prior:
    """Means and standard deviations of the tensors' parameters, and the model's own error."""

    log_a: dict[str, float]
    spread_a: float = 1.5
    log_r: float = _START_LOG_R
    p: float = _START_P
    misfit: float = 0.2
    spread_r: float = 1.2
    spread_p: float = 0.12


@dataclass(frozen=True)
class _Posterior:
    """Of one tensor: weights over the grid [P, R], the mean of log A on it, its variance."""

    weights: Floats
    log_a: Floats
    variance: float

    def mean(self, values: Floats) -> float:
        """The mean over the grid of values [P, R]."""
        return float((self.weights * values).sum())


def fit(table: Table, kld: Floats, se: Floats, added: Floats | None = None) -> Prediction:
    """Predict every choice from the probes: `kld` and `se` [n] in nats, NaN without a probe.

    `added` [n] is noise that a choice has in addition to the table's, and that probes do not have.
    """
    known = np.isfinite(kld)
    log = np.log(np.maximum(np.where(known, kld, 1.0), _LEAST))
    noise = np.where(known, np.nan_to_num(se, nan=0.0) / np.maximum(kld, _LEAST), 0.0)
    noise2 = np.minimum(noise, 1.0) ** 2
    shape = _shape(table, table.noise)
    noisier = shape if added is None else _shape(table, table.noise + added)
    rows = [np.flatnonzero(table.tensor == t) for t in range(len(table.roles))]
    probed = [own[known[own]] for own in rows]
    prior = _Prior(dict.fromkeys(table.roles, _start(log, shape, known)))
    for _ in range(_ROUNDS):
        posteriors = [
            _posterior(log[own], shape[own], noise2[own], prior, role)
            for own, role in zip(probed, table.roles, strict=True)
        ]
        prior = _updated(prior, posteriors, probed, table.roles, log, shape, noise2)
    mean, variance, more = np.empty(len(log)), np.empty(len(log)), np.empty(len(log))
    for own, posterior in zip(rows, posteriors, strict=True):
        for i in own:
            here = posterior.log_a + shape[i]
            mean[i] = posterior.mean(here)
            more[i] = np.expm1(posterior.mean(noisier[i] - shape[i]))
            variance[i] = posterior.mean((here - mean[i]) ** 2) + posterior.variance + prior.misfit**2
    parameters: Parameters = {
        "bias_factor": float(np.exp(prior.log_r)),
        "exponent": prior.p,
        "misfit": prior.misfit,
        "spread": prior.spread_a,
        "probes": int(known.sum()),
    }
    return Prediction(mean, variance, parameters, more)


def cross_validated(table: Table, kld: Floats, se: Floats, folds: int = 5) -> float | None:
    """The root mean square error of predicted log KLD, each fold of the probes predicted from the others.

    None where there are fewer than two probes a fold.
    """
    known = np.flatnonzero(np.isfinite(kld))
    if len(known) < 2 * folds:
        return None
    misses = []
    for fold in range(folds):
        left_out = known[fold::folds]
        rest = kld.copy()
        rest[left_out] = np.nan
        misses.append(fit(table, rest, se).log[left_out] - np.log(np.maximum(kld[left_out], _LEAST)))
    return float(np.sqrt(np.mean(np.concatenate(misses) ** 2)))


def _shape(table: Table, noise: Floats) -> Floats:
    """[n, P, R]: the log of the KLD, less log A."""
    energy = np.log(np.maximum(noise[:, None] + np.exp(_LOG_R) * table.bias2[:, None], 1e-30))
    return _P[:, None] * energy[:, None, :]


def _start(log: Floats, shape: Floats, known: Flags) -> float:
    """A first log A for all tensors: the median over the probes, in the middle of the grid."""
    middle = shape[:, len(_P) // 2, len(_LOG_R) // 2]
    return float(np.median((log - middle)[known])) if known.any() else 0.0


def _posterior(log: Floats, shape: Floats, noise2: Floats, prior: _Prior, role: str) -> _Posterior:
    """The posterior of one tensor from its probes [k], which may be none."""
    mean, precision = prior.log_a[role], prior.spread_a**-2
    weight = 1 / (noise2 + prior.misfit**2)
    rest = log[:, None, None] - shape
    total = precision + weight.sum()
    log_a = (mean * precision + np.tensordot(weight, rest, 1)) / total
    misses = np.tensordot(weight, (rest - log_a) ** 2, 1) + (log_a - mean) ** 2 * precision
    misses += ((_LOG_R - prior.log_r) / prior.spread_r) ** 2
    misses += (((_P - prior.p) / prior.spread_p) ** 2)[:, None]
    weights = np.exp(-(misses - misses.min()) / 2)
    return _Posterior(weights / weights.sum(), log_a, float(1 / total))


def _updated(
    prior: _Prior,
    posteriors: Sequence[_Posterior],
    probed: Sequence[NDArray[np.int64]],
    roles: Sequence[str],
    log: Floats,
    shape: Floats,
    noise2: Floats,
) -> _Prior:
    """The prior that fits the tensors with probes; unchanged where there are none."""
    seen = [(post, own, role) for post, own, role in zip(posteriors, probed, roles, strict=True) if len(own)]
    if not seen:
        return prior
    log_a = np.array([post.mean(post.log_a) for post, _, _ in seen])
    means = {}
    for role in set(roles):
        own_role = log_a[[r == role for _, _, r in seen]]
        means[role] = float((own_role.sum() + log_a.mean() / 2) / (len(own_role) + 0.5))
    apart = [(a - means[r]) ** 2 + post.variance for a, (post, _, r) in zip(log_a, seen, strict=True)]
    missed = sum(
        np.maximum(post.mean((log[i] - shape[i] - post.log_a) ** 2) + post.variance - noise2[i], 0)
        for post, own, _ in seen
        for i in own
    )
    # A tensor with one probe does not show its curve.
    curves = [post.weights for post, own, _ in seen if len(own) > 1]
    log_r = [float((weights.sum(axis=0) * _LOG_R).sum()) for weights in curves]
    p = [float((weights.sum(axis=1) * _P).sum()) for weights in curves]
    return _Prior(
        log_a=means,
        spread_a=float(np.clip(np.sqrt(np.mean(apart)), 0.8, 2.5)),
        log_r=(math.fsum(log_r) + _STARTS * _START_LOG_R) / (len(curves) + _STARTS),
        p=(math.fsum(p) + _STARTS * _START_P) / (len(curves) + _STARTS),
        misfit=float(np.clip(np.sqrt(missed / sum(len(own) for _, own, _ in seen)), *_MISFIT)),
    )
