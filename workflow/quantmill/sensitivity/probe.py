"""Probes: the KL divergence of the model with one tensor replaced in memory; of a model that embeds the
distance of its embeddings.

No file is written and the model is loaded once: a tensor's weights are
overwritten in memory, the chunks are evaluated, and the weights are restored.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.embedder import Embedder
from quantmill.engine.evaluator import Tokens
from quantmill.engine.ggml import Bytes
from quantmill.engine.graph import Weights
from quantmill.engine.mainline import Evaluator
from quantmill.measure import embeddings
from quantmill.measure.score import cut, in_blocks, parts, with_bos

_BLOCK: Final = 1 << 16  # logits of a block of rows, which fit a core's cache


def divergence(
    reference: NDArray[np.float32], logits: NDArray[np.float32], pool: Executor
) -> NDArray[np.float64]:
    """KL(reference || other) in nats of each row of logits [n, vocabulary], on the pool's threads.

    With p the reference's probabilities and d the difference of the logits less
    its mean under p, it is log(1 + sum p (exp(d) - 1)). Where the two are close
    this is a sum of small terms, so f32 suffices. Where they are equal it is
    exactly 0.
    """

    def block(rows: slice) -> NDArray[np.float64]:
        base, other = reference[rows], logits[rows]
        p = base - base.max(axis=1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(axis=1, keepdims=True)
        d = other - base
        d -= np.vecdot(p, d)[:, None]
        with np.errstate(all="ignore"):  # a broken tensor gives NaN
            np.expm1(d, out=d)
            return np.log1p(np.vecdot(p, d).astype(np.float64))

    return np.concatenate(in_blocks(len(logits), pool, block, max(1, _BLOCK // logits.shape[1])))


@dataclass(frozen=True)
class Probe:
    """The mean KLD of each chunk [chunks], and seconds: of the whole probe, and of its forward passes."""

    kld: NDArray[np.float64]
    seconds: float
    forward: float


class Replaced(ABC):
    """A model whose weights can be replaced, beside what it computes with its own: the reference."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self._forward = weights, 0.0

    @abstractmethod
    def measure(self) -> Probe:
        """The loss of the model, as it is now, beside the reference."""

    def probe(self, name: str, data: Bytes, original: Bytes) -> Probe:
        """The loss with the tensor's bytes replaced by `data`; `original` is restored afterwards."""
        start = time.monotonic()
        try:
            self.weights.set(name, data)
            probe = self.measure()
        finally:
            self.weights.set(name, original)
        return Probe(probe.kld, time.monotonic() - start, probe.forward)


class Prober(Replaced):
    """A model that predicts. The reference's logits, f32 [chunks, scored, vocabulary], are kept in memory."""

    def __init__(self, model: Evaluator, weights: Weights, chunks: Tokens, pool: Executor) -> None:
        super().__init__(weights)
        self.model, self._pool = model, pool
        self._chunks = [with_bos(chunk, model.bos) for chunk in chunks]
        self._reference = [self._logits(chunk).copy() for chunk in self._chunks]

    def measure(self) -> Probe:
        """The divergence of the model, as it is now, from the reference."""
        start, self._forward = time.monotonic(), 0.0
        kld = [
            float(divergence(reference, self._logits(chunk), self._pool).mean())
            for chunk, reference in zip(self._chunks, self._reference, strict=True)
        ]
        return Probe(np.array(kld), time.monotonic() - start, self._forward)

    def _logits(self, chunk: Tokens) -> NDArray[np.float32]:
        """The logits [context/2 - 1, vocabulary] of the scored half; a view, valid until the next."""
        start = time.monotonic()
        self.model.clear()
        # A chunk is one batch, so that its logits are contiguous.
        ((tokens, first, targets),) = parts(len(chunk), self.model.batch)
        self.model.decode(chunk[tokens], tokens.start, first)
        logits = self.model.logits(tokens.stop - first)[: targets.stop - targets.start]
        self.model.wait()
        self._forward += time.monotonic() - start
        return logits


class Embedded(Replaced):
    """A model that embeds. The distance of each chunk stands where a divergence stands of other models."""

    def __init__(self, model: Embedder, weights: Weights, chunks: Tokens) -> None:
        super().__init__(weights)
        self.model, self._units = model, cut(chunks)
        self._reference = self._rows()

    def measure(self) -> Probe:
        """The distance of the embeddings, or scores, from the reference."""
        start = time.monotonic()
        made = self._rows()
        forward = time.monotonic() - start
        with np.errstate(all="ignore"):  # a broken tensor gives NaN
            distance = embeddings.distance(made, self._reference, ranks=self.model.ranks)
        return Probe(distance, time.monotonic() - start, forward)

    def _rows(self) -> NDArray[np.float32]:
        return embeddings.joined([embeddings.rows(self.model, part) for part in self._units])
