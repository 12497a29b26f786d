"""The state of long work in the store: what a killed run goes on from, in place of starting a unit again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from quantmill.store import Store

SAVE_EVERY: Final = 60.0  # seconds: what a killed run repeats of a unit, about


class Saved:
    """The state of the unit of that key while it is being made: how much of it is done, and some bytes.

    One that is whole is read again after a kill; `finished` empties it.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, Store.key("saved", 1, of=key)
        self._last = time.monotonic()
        self._there = False

    def load(self) -> tuple[int, list[memoryview]]:
        """How much was done, and the parts of the state; 0 and none where nothing was saved."""
        state = self._store.get(self._key)
        if not state:
            return 0, []
        self._there = True
        done, count = (int(number) for number in np.frombuffer(state, "<i8", 2))
        ends = np.cumsum(np.frombuffer(state, "<i8", count, offset=16)) + 16 + 8 * count
        starts = [16 + 8 * count, *map(int, ends[:-1])]
        return done, [memoryview(state)[start:end] for start, end in zip(starts, map(int, ends), strict=True)]

    def save(self, done: int, parts: Callable[[], Sequence[bytes]]) -> None:
        """Save the state, if the last one is a minute old."""
        if time.monotonic() - self._last < SAVE_EVERY:
            return
        made = parts()
        numbers = np.array([done, len(made), *map(len, made)], "<i8")
        self._store.put(self._key, numbers.tobytes() + b"".join(made))
        self._last, self._there = time.monotonic(), True

    def finished(self) -> None:
        """The unit is in the store, and its state no longer needed."""
        if self._there:
            self._store.put(self._key, b"")
