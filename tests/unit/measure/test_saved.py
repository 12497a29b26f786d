"""The state of long work: saved by time, read again after a kill, gone when the unit is done."""

from pathlib import Path

import numpy as np
import pytest

from quantmill.measure import saved
from quantmill.measure.saved import Saved
from quantmill.store import Store


def test_it_is_saved_when_a_minute_has_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(saved.time, "monotonic", lambda: clock[0])
    store = Store(tmp_path)
    state = Saved(store, "unit")
    assert state.load() == (0, [])
    state.save(1, lambda: [b"one"])
    assert Saved(store, "unit").load() == (0, [])
    clock[0] += 61
    state.save(2, lambda: [b"", np.arange(3).tobytes()])
    done, parts = Saved(store, "unit").load()
    assert (done, [bytes(part) for part in parts]) == (2, [b"", np.arange(3).tobytes()])
    assert Saved(store, "another").load() == (0, [])
    clock[0] += 59
    state.save(3, lambda: [b"late"])
    assert Saved(store, "unit").load()[0] == 2
    state.finished()
    assert Saved(store, "unit").load() == (0, [])


def test_nothing_is_written_for_a_unit_that_was_quick(tmp_path: Path) -> None:
    Saved(Store(tmp_path), "unit").finished()
    assert not (tmp_path / "units").exists()
