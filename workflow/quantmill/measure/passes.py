"""Sums over the inputs of a model's weights, made in passes that fit the memory; each input's is a unit of
the store.

A pass over the chunks sums up as many inputs as the free memory holds, in the order of the graph, and
computes no further than the last of them. A killed run finds the inputs of finished passes, and of an
unfinished one the sums of a minute ago.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantmill import machine
from quantmill.engine.evaluator import Tokens
from quantmill.errors import QuantmillError
from quantmill.formats.moments import MomentsInput
from quantmill.measure.outer import Input, blocks_of
from quantmill.measure.saved import Saved
from quantmill.measure.score import batch_of, unit_key, with_bos
from quantmill.progress import Log
from quantmill.store import Identity, Store

if TYPE_CHECKING:  # whichever engine is imported is the one that the process uses
    from quantmill.engine.mainline import Evaluator, Observer, Replace

_ROOM: Final = 0.6  # of the free memory, for the sums of a pass


class Unit(Protocol):
    """The sums of one input."""

    @property
    def finite(self) -> bool: ...
    @property
    def counts(self) -> NDArray[np.int64]: ...
    @staticmethod
    def counts_of(data: bytes | memoryview) -> list[int]: ...
    def to_bytes(self) -> bytes: ...
    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self: ...


U = TypeVar("U", bound=Unit)


class Sums(Protocol[U]):
    """The sums of a pass: their state after so many chunks, to go on from; and the units."""

    def state(self, chunks: int) -> bytes: ...
    def resume(self, state: bytes | memoryview | None) -> int: ...
    def units(self) -> dict[str, U]: ...


class Passes(ABC, Generic[U]):
    """The sums of inputs on `chunks` [n, context], from the store or measured. May be used in threads.

    `inputs` are in the order of the graph; `path` is the model that they are of; `identity` is what beside
    the tokens determines them all.
    """

    stage: str
    words: str  # what is measured, in a sentence and over its progress
    unit: type[U]

    def __init__(
        self,
        path: Path,
        chunks: Tokens,
        inputs: Sequence[Input],
        *,
        identity: Identity,
        store: Store,
        threads: int,
        log: Log,
    ) -> None:
        self.inputs = list(inputs)
        self.seconds, self.measured = 0.0, 0
        self.path, self.chunks, self.threads = path, chunks, threads
        self.identity, self.store, self._log = identity, store, log
        self._of = {weight: one for one in inputs for weight in one.weights}
        self._lock = threading.Lock()

    @abstractmethod
    def started(
        self, inputs: Sequence[Input], pool: Executor
    ) -> AbstractContextManager[tuple[Sums[U], Callable[[Tokens], None]]]:
        """The sums of a pass over these inputs, and what adds a chunk to them."""

    def size(self, one: Input) -> int:
        """What a pass over an input takes in memory, in bytes."""
        return one.bytes

    def identity_of(self, one: Input) -> Identity:
        """What beside the tokens determines the sums of an input."""
        return {**self.identity, "input": one.name}

    def __contains__(self, weight: str) -> bool:
        return weight in self._of

    def input_of(self, weight: str) -> Input:
        """The input of a weight."""
        return self._of[weight]

    def key(self, weight: str) -> str:
        """The key of the unit of a weight's input."""
        return self._key(self._of[weight])

    def of(self, weight: str) -> U:
        """The sums of a weight's input; where the store lacks them, measured with others it lacks."""
        one = self._of[weight]
        with self._lock:
            made: dict[str, U] = {}
            unit = self.store.get(self._key(one))
            if unit is None:
                made = self._pass(self.inputs.index(one))
                unit = None if one.name in made else self.store.get(self._key(one))
        return self.unit.from_bytes(unit) if unit is not None else made[one.name]

    def counts(self, one: Input) -> list[int]:
        """The rows behind each matrix of a measured input."""
        unit = self.store.get(self._key(one))
        return self.of(one.name).counts.tolist() if unit is None else self.unit.counts_of(unit)

    def listed(self, one: Input) -> MomentsInput:
        """A measured input, as a report lists it."""
        return {
            "name": one.name,
            "weights": one.weights,
            "columns": one.columns,
            "matrices": one.matrices,
            "blocks": blocks_of(one.columns),
            "tokens": self.counts(one),
            "key": self._key(one),
        }

    def measure(self) -> None:
        """Measure all that the store lacks."""
        self.store.expect(map(self._key, self.inputs), sum(one.bytes for one in self.inputs))
        for number, one in enumerate(self.inputs):
            if self.store.get(self._key(one)) is None:
                self._pass(number)

    def _key(self, one: Input) -> str:
        return unit_key(self.stage, self.chunks, self.identity_of(one))

    def _pass(self, first: int) -> dict[str, U]:
        """Measure an input, and as many of those missing after it as the memory holds; none where another
        process does so meanwhile.
        """
        missing = [one for one in self.inputs[first:] if self.store.get(self._key(one)) is None]
        inputs = self._that_fit(missing, machine.memory())
        key = unit_key(self.stage, self.chunks, {"pass": " ".join(map(self._key, inputs))})
        with self.store.leases.holding(key, partial(self._has, inputs)) as found:
            return {} if found else self._evaluated(inputs, key)

    def _has(self, inputs: Sequence[Input]) -> bool | None:
        """True where the store has them all."""
        return all(self.store.has(self._key(one)) for one in inputs) or None

    def _evaluated(self, inputs: list[Input], key: str) -> dict[str, U]:
        start = time.monotonic()
        with (
            ThreadPoolExecutor(self.threads) as pool,
            self._log.progress(self.words, len(self.chunks), "chunks") as progress,
            self.started(inputs, pool) as (sums, add),
        ):
            saved = Saved(self.store, key)
            _, state = saved.load()
            done = sums.resume(state[0] if state else None)
            progress.reuse(done)
            for number, chunk in enumerate(self.chunks[done:], start=done + 1):
                add(chunk)
                progress.add(1)
                if number < len(self.chunks):
                    saved.save(number, partial(_state, sums, number))
        made = sums.units()
        for one in inputs:
            if not made[one.name].finite:
                what = f"non-finite activations in {one.name}"
                raise QuantmillError(what, self.path, "the source is damaged")
            self.store.put(self._key(one), made[one.name].to_bytes())
        saved.finished()
        self.seconds += time.monotonic() - start
        self.measured += len(inputs)
        return made

    def _that_fit(self, missing: Sequence[Input], memory: machine.Memory) -> list[Input]:
        """The first of the inputs, and those after it that fit the free memory beside it."""
        room = int(memory.available * _ROOM)
        if self.size(missing[0]) > room:
            raise QuantmillError(
                f"the {self.words} of its input need {self.size(missing[0]):,} bytes of memory, and "
                f"{memory.where} has {memory.available:,} left, of which {room:,} are for them",
                missing[0].name,
                "use a larger machine, or `rounding: nearest`",
            )
        sizes = accumulate(self.size(one) for one in missing)
        return [one for one, total in zip(missing, sizes, strict=True) if total <= room]


def _state(sums: Sums[U], chunks: int) -> list[bytes]:
    return [sums.state(chunks)]


@contextmanager
def loaded(
    path: Path, context: int, threads: int, observe: Observer, replace: Replace | None = None
) -> Iterator[Evaluator]:
    """A model that computes as far as the observer wants."""
    from quantmill.engine.mainline import Evaluator

    batch = batch_of(context, whole=False)
    with Evaluator(
        path, context=context, batch=batch, threads=threads, observe=observe, replace=replace
    ) as model:
        model.reserve()
        yield model


def evaluate(chunk: Tokens, *models: Evaluator) -> None:
    """Show a chunk to each model, batch by batch: the first sees a batch before the next does.

    Every token asks for its logits, or the last layer's inputs would be seen for some tokens only.
    """
    tokens, batch = with_bos(chunk, models[0].bos), models[0].batch
    for model in models:
        model.clear()
    for start in range(0, len(tokens), batch):
        stop = min(start + batch, len(tokens))
        for model in models:
            model.decode(tokens[start:stop], start, discard=stop == len(tokens))
