"""A clock that leaps forward or goes back: nothing fails, nothing that is in use is lost."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from quantmill import parts
from quantmill.files import building, writing
from quantmill.flow.logs import Logs
from quantmill.model.digests import Memo
from quantmill.progress import Log
from quantmill.store import Store, Unit

YEARS = 10 * 365 * 86400.0
LEAPS = (-YEARS, -3600.0, 7200.0, YEARS)


def leap(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have the clock be wrong by so much, for whoever asks."""
    now = time.time
    patch.setattr(time, "time", lambda: now() + seconds)


@pytest.mark.parametrize("seconds", LEAPS)
def test_a_unit_that_is_being_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Another process makes room meanwhile, by whose clock the temporary file is old."""
    store = Store(tmp_path, log=Log(tmp_path / "log"))
    path = store.units / "a" / ("a" * 64)
    with writing(path, durable=False) as file:
        file.write(b"x")
        file.flush()
        leap(monkeypatch, seconds)
        Store(tmp_path, max_bytes=10)._make_room(5)
        parts.sweep_below(tmp_path / "units")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("seconds", LEAPS)
def test_what_dead_writers_left_goes_or_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    left = parts.new(tmp_path / "x")
    left.write_text("left")
    leap(monkeypatch, seconds)
    parts.sweep(tmp_path / "x")
    assert left.exists() == (seconds < 0)
    with writing(tmp_path / "x") as file:
        file.write(b"new")
    with building(tmp_path / "folder") as folder:
        (folder / "y").touch()
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("seconds", LEAPS)
def test_eviction_leaves_what_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    keys = [Store.key("x", number) for number in range(12)]
    earlier = Store(tmp_path, max_bytes=10_000, log=Log(tmp_path / "log"))
    for key in keys[:6]:
        earlier.put(key, bytes(1000))
        then = time.time() + seconds  # as if the clock had been wrong
        os.utime(earlier._path(key), (then, then))
    leap(monkeypatch, seconds)
    store = Store(tmp_path, max_bytes=10_000, log=Log(tmp_path / "log"))
    store.expect(keys[:3])
    used = [store.get(key) for key in keys[:3]]
    for key in keys[6:]:
        store.put(key, bytes(1000))
    assert all(unit == bytes(1000) for unit in used)
    assert all(store.get(key) == bytes(1000) for key in keys[:3])
    assert sum(path.stat().st_size for path in store.units.glob("*/*")) <= 10_000


@pytest.mark.parametrize("seconds", LEAPS)
def test_a_pack_of_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    store, file = Store(tmp_path / "store", max_bytes=100), tmp_path / "x.gguf"
    file.write_bytes(b"x" * 200)
    unit = Unit("a" * 64, b"x" * 200, hashlib.sha256(b"x" * 200).digest())
    leap(monkeypatch, seconds)
    with store.pack(file) as record:
        record(unit, 0)
        Store(tmp_path / "store", max_bytes=1)._make_room()
    assert store.get(unit.key) == b"x" * 200
    file.unlink()
    Store(tmp_path / "store", max_bytes=1)._make_room()  # now it counts, and goes
    assert store.get(unit.key) is None


@pytest.mark.parametrize("seconds", LEAPS)
def test_digests_and_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    path, memo = tmp_path / "x", Memo([tmp_path / "notes"])
    path.write_text("old")
    old = memo.sha256(path)
    leap(monkeypatch, seconds)
    then = time.time()
    os.utime(path, (then, then))
    assert memo.sha256(path) == old
    path.write_text("new")
    os.utime(path, (then - 1, then - 1))
    assert memo.sha256(path) != old
    logs = Logs(tmp_path)
    (tmp_path / "m" / "logs").mkdir(parents=True)
    log = Log(tmp_path / "m" / "logs" / "x.log")
    log.warn(["w"])
    logs.repeat_warnings()
    logs.repeat_errors()
    with log.progress("x", 10, "units") as progress:
        progress.add(3)
        leap(monkeypatch, -seconds)
        progress.add(7)
