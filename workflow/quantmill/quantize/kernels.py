"""One tensor to one type, through the store."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.ggml import Bytes, Conversion
from quantmill.errors import QuantmillError
from quantmill.formats.types import writable
from quantmill.measure.cross import Known
from quantmill.measure.moments import Moments
from quantmill.quantize import feedback, nvfp4, repack
from quantmill.quantize.feedback import Feedback
from quantmill.store import Payload, Store, Unit

STAGE = "quantize.write"

# Of the units, apart from the stage's: the bytes of a tensor may stay the same where what is
# written of its file changes.
_UNITS = 2

# Tensors in hand at once: while one is converted, another is read or stored.
_KEEPERS = 3

# A smaller tensor takes less time than it takes to tell other processes of it.
LEASED_BYTES: Final = 4 << 20

# The quantizers of these types take no notice of importance (ggml-quants.c of either
# engine), so that their tensors outlive a new imatrix.
_INDIFFERENT = frozenset({"f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "mxfp4", "nvfp4", "q8_KV"})


@dataclass(frozen=True)
class Task:
    """One tensor to quantize: `sha256` is of the source's data, `importance` f32 [matrices, columns].

    `together` are the weights that share an nvfp4 weight's per-tensor scale, itself
    among them; a per-tensor scale is a task of type f32 of its weight. `moments` is the
    key of its input's second moments where it is rounded with error feedback. What is
    `packed` lies on the grid of the type, and is not rounded.
    """

    name: str
    sha256: str
    source_type: str
    type: str
    shape: tuple[int, ...]
    importance: NDArray[np.float32] | None
    together: tuple[nvfp4.Weight, ...] = ()
    moments: str | None = None
    packed: bool = False

    def key(self, engine: str) -> str:
        """Its key in the store: source bytes, types, shape, importance values, engine."""
        importance = self.importance
        more: dict[str, object] = {}
        if self.together:
            more["together"] = [weight.sha256 for weight in self.together]
        if self.moments is not None:
            more |= {"moments": self.moments, "feedback": feedback.VERSION}
        if self.packed:
            more["packed"] = repack.VERSION
        return Store.key(
            STAGE,
            _UNITS,
            engine=engine,
            source=self.sha256,
            source_type=self.source_type,
            type=self.type,
            shape=list(self.shape),
            importance=None if importance is None else hashlib.sha256(importance.data).hexdigest(),
            **more,
        )


def task(
    name: str,
    sha256: str,
    source_type: str,
    type_name: str,
    shape: tuple[int, ...],
    importance: NDArray[np.float32] | None,
    engine: str = "mainline",
) -> Task:
    """The task of a tensor; importance is dropped where the type's quantizer does not look at it.

    QuantmillError for a type that the engine cannot write: ggml would abort the process.
    """
    if type_name not in writable(engine):
        raise QuantmillError(f"{type_name} cannot be quantized to", name, "choose another type for it")
    if type_name in _INDIFFERENT:
        importance = None
    elif importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    return Task(name, sha256, source_type, type_name, shape, importance)


class Quantizer:
    """Quantizes tensors, each at most once for all recipes. `engine` is the digest of the process's engine.

    `threads` of them convert, a few more read and write units of the store, so
    that neither waits for the other, nor the caller who writes the file. `moments`
    are of the inputs of those that are rounded with error feedback, `cross` of
    those of them that other weights change. Without `keep` new tensors are not
    stored: they come into a file that the store has a link to.
    """

    def __init__(
        self,
        engine: str,
        store: Store,
        threads: int,
        moments: Moments | None = None,
        cross: Known | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.engine, self.store, self.threads = engine, store, threads
        self._keep = keep
        self._workers = ThreadPoolExecutor(threads)
        self._feedback = None if moments is None else Feedback(moments, self._workers, threads, cross)
        self._keepers = ThreadPoolExecutor(_KEEPERS)
        self._largest: dict[str, Future[NDArray[np.float32]]] = {}
        self._lock = threading.Lock()

    def start(self, task: Task, source: Bytes) -> Callable[[], Payload]:
        """Begin on a tensor; the returned function waits for its bytes.

        It raises QuantmillError, naming the tensor, where the type needs
        importance or the result does not validate.
        """
        unit = self.begin(task, lambda: source, source.size)
        return lambda: unit().payload

    def begin(self, task: Task, source: Callable[[], Bytes], size: int) -> Callable[[], Unit]:
        """As `start`, for a tensor as a unit of the store; its `size` bytes are read where it is made."""
        return self._keepers.submit(self._find_or_make, task, source, size).result

    def _find_or_make(self, task: Task, source: Callable[[], Bytes], size: int) -> Unit:
        leased = size >= LEASED_BYTES
        return self.store.find_or_make(
            task.key(self.engine), lambda: self._make(task, source()), keep=self._keep, leased=leased
        )

    def _make(self, task: Task, source: Bytes) -> memoryview:
        if task.packed:
            return self._repack(task, source).data
        if task.together:
            return self._make_scaled(task, source).data
        return self.convert(task, source, task.shape).data

    def convert(self, task: Task, source: Bytes, shape: tuple[int, ...]) -> Bytes:
        """A tensor's bytes at its type, or those of some of its rows: `shape` is that of `source`.

        Of a tensor that is rounded with error feedback, what ggml makes of it is kept for other recipes.
        """
        try:
            if task.moments is None or self._feedback is None:
                return self._nearest(task, source, shape)
            nearest = partial(self._unit_of_nearest, task, shape, partial(self._nearest, task, source, shape))
            return self._feedback.round(source, nearest, replace(task, shape=shape))
        except QuantmillError as error:
            raise QuantmillError(str(error), task.name) from error

    def _repack(self, task: Task, source: Bytes) -> Bytes:
        try:
            return repack.repack(source, task.source_type, task.type, task.shape, self._workers, self.threads)
        except QuantmillError as error:
            raise QuantmillError(str(error), task.name) from error

    def means(self, task: Task) -> Iterator[NDArray[np.float32]] | None:
        """The mean second moments [blocks, width, width] that each matrix of a task is rounded with; None
        where it is rounded to nearest.
        """
        return None if task.moments is None or self._feedback is None else self._feedback.means(task.name)

    def _unit_of_nearest(self, task: Task, shape: tuple[int, ...], make: Callable[[], Bytes]) -> Bytes:
        if shape != task.shape:  # a sample of rows
            return make()
        key = replace(task, moments=None).key(self.engine)
        return np.frombuffer(self.store.get_or_make(key, lambda: make().data), np.uint8)

    def _nearest(self, task: Task, source: Bytes, shape: tuple[int, ...]) -> Bytes:
        return Conversion(
            self._workers, self.threads, source, task.source_type, task.type, shape, task.importance
        ).result()

    def _make_scaled(self, task: Task, source: Bytes) -> Bytes:
        """An nvfp4 weight, or its per-tensor scale."""
        scales = nvfp4.scales([self._largest_of(weight) for weight in task.together])
        if task.type == "f32":
            return scales.view(np.uint8)
        weight = nvfp4.Weight(task.name, task.sha256, task.source_type, task.shape, lambda: source)

        def make() -> Bytes:
            return nvfp4.quantize(weight, scales, self._workers, self.threads)

        if task.moments is None or self._feedback is None:
            return make()
        try:
            nearest = partial(self._unit_of_nearest, task, task.shape, make)
            return self._feedback.round(source, nearest, task, scales)
        except QuantmillError as error:
            raise QuantmillError(str(error), task.name) from error

    def _largest_of(self, weight: nvfp4.Weight) -> NDArray[np.float32]:
        """The largest magnitudes of a weight, computed once."""
        with self._lock:
            known = self._largest.get(weight.sha256)
            future = self._largest.setdefault(weight.sha256, Future())
        if known is None:
            key = Store.key(
                "quantize.largest", 1, source=weight.sha256, type=weight.type, shape=list(weight.shape)
            )
            try:
                data = self.store.get_or_make(
                    key, lambda: nvfp4.largest(weight, self._workers, self.threads).tobytes()
                )
                future.set_result(np.frombuffer(data, np.float32))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._keepers, self._workers):
            pool.shutdown(cancel_futures=True)
