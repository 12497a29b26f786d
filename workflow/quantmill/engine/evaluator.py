"""A model loaded for evaluation: what both engines share. `loader` loads one."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from quantmill import recorder
from quantmill.formats.devices import Placement

Tokens = NDArray[np.int32]
Tick = Callable[[float], None]

_WARNING: Final = 3  # GGML_LOG_LEVEL_WARN
_CONTINUED: Final = 5  # GGML_LOG_LEVEL_CONT: the dots of a load's progress


class Evaluator(Protocol):
    """A model that evaluates `sequences` side by side, at most `batch` tokens at once.

    `bos` is the token that the vocabulary wants before a text, None where it wants none. `tick` is called
    with a number of tokens while these are computed. `placement` says what devices have of it, None: nothing.
    """

    vocab_size: int
    bos: int | None
    batch: int
    sequences: int
    placement: Placement | None

    @property
    def tick(self) -> Tick | None:
        """What is told of progress within a `decode`."""

    @tick.setter
    def tick(self, tick: Tick | None) -> None: ...

    def clear(self) -> None:
        """Forget all positions."""

    def decode(self, tokens: Tokens, position: int, first_logits: int = 0) -> None:
        """Compute `tokens` [n], or [sequences, n], at `position`...; store logits for those from
        `first_logits` on.
        """

    def logits(self, count: int) -> NDArray[np.float32]:
        """The stored logits [count, vocabulary] of the last `decode`; a view, valid until the next."""

    def wait(self) -> None:
        """Wait until all requested tokens are computed."""

    def __enter__(self) -> Self:
        """The model itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free it."""


def fill(batch: Any, tokens: Tokens, position: int, first_logits: int) -> None:
    """Tokens [n] of one sequence, or [sequences, n] of several side by side, into a `llama_batch`, whose
    fields have the same names in both engines.
    """
    rows = tokens.reshape(-1, tokens.shape[-1])
    sequences, length = rows.shape
    n = rows.size
    batch.n_tokens = n
    view(batch.token, n)[:] = rows.reshape(-1)
    view(batch.pos, n)[:] = np.tile(np.arange(position, position + length), sequences)
    view(batch.n_seq_id, n)[:] = 1
    view(batch.logits, n)[:] = np.tile(np.arange(length) >= first_logits, sequences)
    for i in range(n):
        batch.seq_id[i][0] = i // length


def logits_at(pointer: Any, count: int, vocabulary: int) -> NDArray[np.float32]:
    """The logits [count, vocabulary] at a pointer to the first."""
    return np.ctypeslib.as_array(c.cast(pointer, c.POINTER(c.c_float)), (count, vocabulary))


def view(pointer: Any, count: int) -> NDArray[Any]:
    """The `count` values at a typed pointer, in place."""
    return np.ctypeslib.as_array(pointer, (count,))


_LINES: Final = 200


class Listener:
    """Collects the last warnings and errors of a library's log: they explain a failure.

    `buffers` are the lines that tell what was allocated where.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self.buffers: list[str] = []

    def __call__(self, level: int, text: bytes, _: Any) -> None:
        """The library's log callback."""
        if b" buffer size = " in text:
            self.buffers.append(text.decode(errors="replace"))
        if _WARNING <= level < _CONTINUED and text.strip():
            self._lines.append(text.decode(errors="replace").strip())
            del self._lines[:-_LINES]
            recorder.note(recorder.HEARD, self._lines[-1])

    def last_words(self, about: str = "") -> str:
        """The last line; of a load, `about` marks the line that gives the reason of its failure."""
        marked = (line for line in reversed(self._lines) if about and about in line)
        return next(marked, self._lines[-1] if self._lines else "no reason given")

    @property
    def lines(self) -> list[str]:
        """The warnings and errors, oldest first."""
        return list(self._lines)
