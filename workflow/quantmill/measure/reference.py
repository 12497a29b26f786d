"""The reference's predictions in a bounded form, and another model's divergence from them.

Of each prediction the likely tokens are stored exactly, the rest by samples.

llama-perplexity keeps the whole distribution over the vocabulary, 16 bits a
token of it (2 V + 8 bytes a prediction). Here a prediction keeps

- the tokens above a probability of 1e-5, at most V/16 of them, with their exact ln p;
- of all others, the rest, their probability in all;
- up to 64 tokens drawn from the rest by their probabilities, with their exact ln p.

With p the reference and q another model, K the stored tokens, P and Q their
probabilities of the rest, the divergence is

    KL(p||q) = sum over K of p ln(p/q) + P ln(P/Q) + P KL(p/P || q/Q)

The first two terms, the divergence of the distributions over K and the rest as
one, need only what is stored; they alone would be a lower bound. The last
is estimated by the mean of (r - 1) - ln r over the samples, with r = (q/Q)/(p/P):
as the mean of r is 1, it is without bias; it is never negative; and it varies
far less than the mean of -ln r (J. Schulman, "Approximating KL Divergence",
2020). Each term is exactly 0 for the model itself. How far the estimate is off
is measured on a few predictions that are stored whole.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.evaluator import Tokens
from quantmill.formats.measurements import ReferenceForm
from quantmill.measure.score import Softmax, in_blocks

STAGE: Final = "measure.reference"

_THRESHOLD = 1e-5
_KEPT_OF_VOCABULARY = 1 / 16
_SAMPLES = 64
# What a reader of the figures must know of the form.
FORM: Final[ReferenceForm] = {
    "threshold": _THRESHOLD,
    "most_of_vocabulary": _KEPT_OF_VOCABULARY,
    "samples": _SAMPLES,
}
# Of so many predictions one is stored whole: 3 % of what llama-perplexity stores.
_WHOLE_OF = 64
_TINY = np.finfo(np.float32).tiny
# Fields of `Values` that have another name in the store, whose units outlive a name.
_STORED_AS: Final = {"tokens_stored": "kept"}

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """n predictions of the reference.

    `counts` [n] tokens each are stored: `ids` and `logs` [sum of counts], ln p.
    `rest` [n] is ln of the probability of all others (-inf where they have
    none), of which `sample_ids` and `sample_logs` [n, samples] are drawn.
    `top` [n] is the most likely token; `nll` [n] the negative log likelihood of
    the token that came. `whole` [few, vocabulary] is ln p of all tokens, for
    the predictions `whole_rows(n)`.
    """

    counts: NDArray[np.int64]
    ids: NDArray[np.uint32]
    logs: Floats
    rest: Floats
    sample_ids: NDArray[np.uint32]
    sample_logs: Floats
    top: NDArray[np.uint32]
    nll: Floats
    whole: Floats

    @property
    def vocabulary(self) -> int:
        """The number of tokens in the vocabulary."""
        return self.whole.shape[1]

    def part(self, rows: slice) -> Reference:
        """Some of the predictions, without `whole`."""
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        tokens = slice(ends[rows.start], ends[rows.stop])
        return Reference(
            self.counts[rows],
            self.ids[tokens],
            self.logs[tokens],
            self.rest[rows],
            self.sample_ids[rows],
            self.sample_logs[rows],
            self.top[rows],
            self.nll[rows],
            self.whole[:0],
        )


def whole_rows(count: int) -> NDArray[np.int64]:
    """Which of `count` predictions are stored whole: evenly spaced, at least one."""
    return np.arange(min(_WHOLE_OF, count) // 2, count, _WHOLE_OF)


def keep(logits: Floats, targets: Tokens, pool: ThreadPoolExecutor) -> Reference:
    """The reduced form of predictions, `logits` [n, vocabulary]; `targets` [n] are the tokens that came."""
    # One point of a grid a prediction: systematic sampling, which is without bias if it is uniform.
    starts = np.random.default_rng(0).random(len(targets))

    def block(rows: slice) -> Reference:
        return _keep(Softmax(logits[rows]), targets[rows], starts[rows])

    blocks = in_blocks(len(targets), pool, block)
    return _joined(blocks, Softmax(logits[whole_rows(len(targets))]).all_log_probabilities())


def _keep(softmax: Softmax, targets: Tokens, starts: NDArray[np.float64]) -> Reference:
    count, vocabulary = softmax.logits.shape
    ids, counts = _likely(softmax)
    rows = np.repeat(np.arange(count), counts)
    logs = softmax.log_probabilities(rows, ids)
    top = softmax.logits.argmax(axis=1)
    every = np.arange(count)
    nll = -softmax.log_probabilities(every, targets)
    rest = rest_of(softmax, rows, ids)
    samples = min(_SAMPLES, _most(vocabulary))
    sample_ids = np.empty((count, samples), np.int64)
    grid = np.arange(samples)
    for row, sums in enumerate(np.cumsum(softmax.exps, axis=1)):
        # a stored token adds nothing to the sum, and is never where it passes a point
        points = (grid + starts[row]) * (sums[-1] / samples)
        if sums[-1] < _TINY:
            rest[row] = -np.inf
        sample_ids[row] = np.minimum(np.searchsorted(sums, points, side="right"), vocabulary - 1)
    sample_logs = softmax.log_probabilities(every[:, None], sample_ids)
    return Reference(
        counts,
        ids.astype(np.uint32),
        logs,
        rest,
        sample_ids.astype(np.uint32),
        sample_logs,
        top.astype(np.uint32),
        nll,
        np.empty((0, vocabulary), np.float32),
    )


def _likely(softmax: Softmax) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids of the tokens to keep, row after row, and how many each row [n] has: at least its top."""
    vocabulary = softmax.exps.shape[1]
    most = _most(vocabulary)
    # exps of the top is 1
    least = np.minimum(_THRESHOLD * softmax.sums, 0.5)[:, None]
    mask = softmax.exps > least
    counts = np.count_nonzero(mask, axis=1)
    for row in np.flatnonzero(counts > most):
        largest = np.argpartition(softmax.exps[row], vocabulary - most)[vocabulary - most :]
        mask[row] = False
        mask[row, largest] = True
        counts[row] = most
    # flatnonzero is three times as fast as nonzero
    return np.flatnonzero(mask) % vocabulary, counts


def _most(vocabulary: int) -> int:
    """How many tokens of a prediction are stored at most, and as many at most are drawn."""
    return max(1, int(vocabulary * _KEPT_OF_VOCABULARY))


def rest_of(softmax: Softmax, rows: NDArray[np.int64], ids: NDArray[np.integer]) -> Floats:
    """ln of the probability [n] of all tokens but the `ids` under their `rows`, which leave `exps`.

    Summed, and not taken as 1 less the others, which would leave rounding alone of a small rest.
    """
    softmax.exps[rows, ids] = 0
    rest = np.maximum(softmax.exps.sum(axis=1), _TINY)
    return np.log(rest) - softmax.log_sums


def _joined(parts: list[Reference], whole: Floats) -> Reference:
    """Blocks of predictions as one, with those that are stored whole."""
    names = [field.name for field in fields(Reference)][:-1]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Reference(whole=whole, **joined)


def to_bytes(references: Iterable[Reference]) -> bytes:
    """As a unit of the store (npz); ids in 16 bits where the vocabulary allows it."""
    arrays = {}
    for place, reference in enumerate(references):
        kind = np.uint16 if reference.vocabulary <= 1 << 16 else np.uint32
        for field in fields(Reference):
            values = getattr(reference, field.name)
            arrays[f"{place}/{field.name}"] = values.astype(kind) if values.dtype == np.uint32 else values
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def from_bytes(data: bytes | memoryview) -> list[Reference]:
    """Read a unit of the store."""
    with np.load(io.BytesIO(data)) as arrays:
        count = 1 + max(int(name.split("/")[0]) for name in arrays.files)
        return [
            Reference(**{field.name: arrays[f"{place}/{field.name}"] for field in fields(Reference)})
            for place in range(count)
        ]


@dataclass(frozen=True)
class Values:
    """A model's n predictions beside the reference's.

    `kld` [n], nats; `nll` [n] of the token that came, `nll_reference` [n] the
    reference's own; `same_top` [n]: whether both hold the same token the most
    likely; `tokens_stored` [n] how many tokens are stored of the reference's
    prediction and `mass` [n] their probability; `whole` [n] the divergence over
    the whole vocabulary, NaN where the prediction is not stored whole.
    """

    kld: NDArray[np.float64]
    nll: Floats
    nll_reference: Floats
    same_top: NDArray[np.bool_]
    tokens_stored: NDArray[np.int64]
    mass: Floats
    whole: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Iterable[Values]) -> Values:
        """Predictions one after the other."""
        parts = list(parts)
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def to_bytes(self, seconds: float) -> bytes:
        """As a unit of the store (npz), with the seconds taken."""
        out = io.BytesIO()
        arrays = {_STORED_AS.get(name, name): values for name, values in vars(self).items()}
        np.savez(out, seconds=seconds, **arrays)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> tuple[Values, float]:
        """Read a unit of the store."""
        with np.load(io.BytesIO(data)) as arrays:
            values = {f.name: arrays[_STORED_AS.get(f.name, f.name)] for f in fields(cls)}
            return cls(**values), float(arrays["seconds"])


def compare(logits: Floats, targets: Tokens, stored: Reference, pool: ThreadPoolExecutor) -> Values:
    """Predictions `logits` [n, vocabulary] beside the reference's; `targets` [n] are the tokens that came."""

    def block(rows: slice) -> Values:
        return _compare(Softmax(logits[rows]), targets[rows], stored.part(rows))

    values = Values.joined(in_blocks(len(targets), pool, block))
    rows = whole_rows(len(targets))
    ours = Softmax(logits[rows]).all_log_probabilities()
    values.whole[rows] = _terms(stored.whole, ours).sum(axis=1)
    return values


def _compare(softmax: Softmax, targets: Tokens, stored: Reference) -> Values:
    """The three terms of the divergence, as above."""
    every = np.arange(len(targets))
    rows = np.repeat(every, stored.counts)
    starts = np.concatenate([[0], np.cumsum(stored.counts)[:-1]])
    kld = np.add.reduceat(_terms(stored.logs, softmax.log_probabilities(rows, stored.ids)), starts)
    mass = np.add.reduceat(np.exp(stored.logs), starts)
    samples = softmax.log_probabilities(every[:, None], stored.sample_ids).astype(np.float64)
    nll = -softmax.log_probabilities(every, targets)
    same_top = softmax.logits.argmax(axis=1) == stored.top
    # the last: it spends the exps
    rest = rest_of(softmax, rows, stored.ids).astype(np.float64)
    some = stored.rest > -np.inf
    theirs = stored.rest[some].astype(np.float64)
    ratio = (samples[some] - rest[some, None]) - (stored.sample_logs[some] - theirs[:, None])
    within = (np.expm1(ratio) - ratio).mean(axis=1)
    kld[some] += np.exp(theirs) * (theirs - rest[some] + within)
    return Values(kld, nll, stored.nll, same_top, stored.counts, mass, np.full(len(targets), np.nan))


def _terms(p: Floats, q: Floats) -> NDArray[np.float64]:
    """p ln(p/q) from ln p and ln q, in f64; 0 where p is 0."""
    difference = np.subtract(p, q, out=np.zeros(p.shape), where=p > -np.inf, dtype=np.float64)
    return np.exp(p) * difference
