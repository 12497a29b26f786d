"""How likely a model finds given texts: what multiple choice and perplexity of others are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from quantmill.engine.generate import Tokens
from quantmill.engine.mainline import Evaluator
from quantmill.measure.placed import note
from quantmill.measure.score import Softmax
from quantmill.progress import Progress
from quantmill.stages import VERSIONS
from quantmill.store import Identity, Store

STAGE: Final = "evaluate.tasks"
REQUESTS_A_UNIT: Final = 32
_BATCH: Final = 512


@dataclass(frozen=True)
class Request:
    """Tokens whose likelihood is requested (at least one), after those of `context` (at least one)."""

    context: Tokens
    continuation: Tokens

    def within(self, most: int) -> Request:
        """The same in `most` positions: what stands too far before the end is left out."""
        whole = np.concatenate([self.context, self.continuation])[-(most + 1) :]
        end = max(1, len(whole) - len(self.continuation))
        return Request(whole[:end], whole[end:])


class Likelihoods:
    """The log likelihoods of requests by one model, in units of the store.

    `identity` is what, beside the tokens, determines them. The model is loaded for
    the first unit that is missing. A context is computed apart from what follows
    it, and once where the next request has the same: a likelihood does not depend
    on the requests before it.
    """

    def __init__(self, path: Path, *, context: int, threads: int, identity: Identity, store: Store) -> None:
        self.context = context
        self._path, self._threads, self._identity, self._store = path, threads, identity, store
        self._done: Tokens | None = None

    @cached_property
    def _model(self) -> Evaluator:
        batch = min(_BATCH, self.context)
        model = Evaluator(self._path, context=self.context, batch=batch, threads=self._threads)
        note(self._store, STAGE, self._identity, model.placement)
        return model

    def of(self, requests: Sequence[Request], progress: Progress) -> Iterator[tuple[float, bool]]:
        """Of each request ln p of its continuation (nats), and whether each token was the likeliest."""
        for first in range(0, len(requests), REQUESTS_A_UNIT):
            part = [request.within(self.context) for request in requests[first : first + REQUESTS_A_UNIT]]
            reused = self._store.reused
            unit = self._store.get_or_make(self._key(part), partial(self._make, part))
            (progress.add if self._store.reused == reused else progress.reuse)(len(part))
            for value, greedy in np.frombuffer(unit, np.float64).reshape(-1, 2):
                yield float(value), bool(greedy)

    def one(self, request: Request) -> tuple[float, bool]:
        """The same of one request that fits into the context."""
        before, after = request.context[:-1], request.continuation[:-1]
        if (
            self._done is None
            or not np.array_equal(self._done, before)
            or not self._model.forget(len(before))
        ):
            self._model.clear()
            for start in range(0, len(before), self._model.batch):
                piece = before[start : start + self._model.batch]
                self._model.decode(piece, start, len(piece))
        self._done = before
        inputs, value, greedy = np.concatenate([request.context[-1:], after]), 0.0, True
        for start in range(0, len(inputs), self._model.batch):
            piece = inputs[start : start + self._model.batch]
            targets = request.continuation[start : start + len(piece)]
            self._model.decode(piece, len(before) + start)
            logits = self._model.logits(len(piece))
            values = Softmax(logits).log_probabilities(np.arange(len(piece)), targets)
            value += float(values.sum(dtype=np.float64))
            greedy = greedy and bool((logits.argmax(axis=1) == targets).all())
        return value, greedy

    def _make(self, part: Sequence[Request]) -> bytes:
        return np.array([self.one(request) for request in part], np.float64).tobytes()

    def _key(self, part: Sequence[Request]) -> str:
        tokens = [
            hashlib.sha256(t.astype("<i4").tobytes()).hexdigest()
            for r in part
            for t in (r.context, r.continuation)
        ]
        return Store.key(STAGE, VERSIONS[STAGE], tokens=tokens, **self._identity)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "_model" in self.__dict__:
            self._model.__exit__(kind, error, trace)


def windows(tokens: Tokens, first: Tokens, most: int) -> Iterator[Request]:
    """A text in requests of at most `most` inputs, each token requested once and with all the context
    that fits: lm-eval's rolling windows. `first` [1] is the token before the text.
    """
    whole = np.concatenate([first, tokens])
    for start in range(0, len(tokens), most):
        end = min(start + most, len(tokens))
        yield Request(whole[max(0, end - most) : start + 1], tokens[start:end])
