"""One tensor to one type, through the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.ggml import Bytes, Conversion
from quantmill.errors import QuantmillError
from quantmill.model.types import WRITABLE
from quantmill.store import Store
from quantmill.versions import VERSIONS

STAGE = "quantize.write"

# Tensors in hand at once: while one is converted, another is read or kept.
_KEEPERS = 3

# The quantizers of these types take no notice of importance (ggml-quants.c), so
# that their tensors outlive a new imatrix.
_INDIFFERENT = frozenset({"f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "mxfp4", "nvfp4"})


@dataclass(frozen=True)
class Task:
    """One tensor to quantize: `sha256` is of the source's data, `importance` f32 [matrices, columns]."""

    name: str
    sha256: str
    source_type: str
    type: str
    shape: tuple[int, ...]
    importance: NDArray[np.float32] | None

    def key(self, engine: str) -> str:
        """Its key in the store: source bytes, types, shape, importance values, engine."""
        importance = self.importance
        return Store.key(
            STAGE, VERSIONS[STAGE], engine=engine, source=self.sha256, source_type=self.source_type,
            type=self.type, shape=list(self.shape),
            importance=None if importance is None else hashlib.sha256(importance.data).hexdigest(),
        )  # fmt: skip


def task(
    name: str, sha256: str, source_type: str, type_name: str, shape: tuple[int, ...],
    importance: NDArray[np.float32] | None,
) -> Task:  # fmt: skip
    """The task of a tensor; importance is dropped where the type's quantizer does not look at it.

    QuantmillError for a type that cannot be written: ggml would abort the process.
    """
    if type_name not in WRITABLE:
        raise QuantmillError(f"{type_name} cannot be quantized to", name, "choose another type for it")
    if type_name in _INDIFFERENT:
        importance = None
    elif importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    return Task(name, sha256, source_type, type_name, shape, importance)


class Quantizer:
    """Quantizes tensors, each at most once for all recipes.

    `threads` of them convert, a few more read and write units of the store, so
    that neither waits for the other, nor the caller who writes the file.
    """

    def __init__(self, engine: str, store: Store, threads: int) -> None:
        self.engine, self.store, self.threads = engine, store, threads
        self._workers = ThreadPoolExecutor(threads)
        self._keepers = ThreadPoolExecutor(_KEEPERS)

    def start(self, task: Task, source: Bytes) -> Callable[[], bytes | memoryview]:
        """Begin on a tensor; the returned function waits for its bytes.

        It raises QuantmillError, naming the tensor, where the type needs
        importance or the result does not validate.
        """
        return self._keepers.submit(self._get_or_make, task, source).result

    def _get_or_make(self, task: Task, source: Bytes) -> bytes | memoryview:
        return self.store.get_or_make(task.key(self.engine), partial(self._make, task, source))

    def _make(self, task: Task, source: Bytes) -> memoryview:
        try:
            return Conversion(
                self._workers, self.threads, source, task.source_type, task.type, task.shape, task.importance
            ).result().data  # fmt: skip
        except QuantmillError as error:
            raise QuantmillError(str(error), task.name) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._keepers, self._workers):
            pool.shutdown(cancel_futures=True)
