"""A unit that another process makes is waited for, and taken over where that process is gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from quantmill import leases
from quantmill.leases import Leases
from quantmill.store import Store


def owner(folder: Path, key: str, pid: int, host: str = "", age: float = 0.0) -> Path:
    """A lease of some other process."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / key
    path.write_text(json.dumps({"host": host or socket.gethostname(), "pid": pid}), "utf-8")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_nobody_makes_is_this_process_s(tmp_path: Path) -> None:
    of = Leases(tmp_path)
    assert of.acquire("key", lambda: None) is None
    assert json.loads((tmp_path / "key").read_text("utf-8")) == {
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    of.release("key")
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_since_is_found(tmp_path: Path) -> None:
    of = Leases(tmp_path)
    assert of.acquire("key", lambda: b"made") == b"made"
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_makes_is_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    path = owner(tmp_path, "key", os.getppid())
    made = threading.Event()
    threading.Timer(1.2, made.set).start()
    start = time.monotonic()
    assert Leases(tmp_path, said.append).acquire("key", lambda: b"made" if made.is_set() else None) == b"made"
    assert time.monotonic() - start > 1
    assert path.exists()
    assert said == [f"waiting for a unit that process {os.getppid()} on {socket.gethostname()} makes"]


def test_a_dead_process_is_not_waited_for(tmp_path: Path, gone: int) -> None:
    owner(tmp_path, "key", gone)
    start = time.monotonic()
    assert Leases(tmp_path).acquire("key", lambda: None) is None
    assert time.monotonic() - start < 5
    assert json.loads((tmp_path / "key").read_text("utf-8"))["pid"] == os.getpid()


def test_nor_is_one_of_another_machine_that_says_nothing(tmp_path: Path) -> None:
    owner(tmp_path, "key", 1, "elsewhere", age=leases.EXPIRES_AFTER + 5)
    assert Leases(tmp_path).acquire("key", lambda: None) is None


def test_one_of_another_machine_lives_while_it_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = owner(tmp_path, "key", 1, "elsewhere")
    looks = iter([None, None, None, b"made"])
    assert Leases(tmp_path).acquire("key", lambda: next(looks)) == b"made"
    assert path.exists()


def test_a_lease_is_touched_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TOUCHED_EVERY", 0.05)
    of = Leases(tmp_path)
    of.acquire("key", lambda: None)
    os.utime(tmp_path / "key", (0, 0))
    deadline = time.monotonic() + 10
    while (tmp_path / "key").stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "key").stat().st_mtime > 0
    of.release_all()


def test_two_that_wait_for_each_other_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_PATIENCE", 0.2)
    owner(tmp_path, "theirs", os.getppid())
    of = Leases(tmp_path)
    of.acquire("mine", lambda: None)
    assert of.acquire("theirs", lambda: None) is None


def test_where_nothing_can_be_written_nothing_is_leased(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Leases(tmp_path / "file").acquire("key", lambda: None) is None


def test_a_broken_lease_expires(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff")
    os.utime(tmp_path / "key", (0, 0))
    assert Leases(tmp_path).acquire("key", lambda: None) is None


SIX_UNITS = """
import sys, time
from pathlib import Path
from quantmill.store import Store

store, made, number = Store(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]

def make(unit):
    time.sleep(0.15)
    (made / f"{unit}-{number}").touch()
    return bytes([unit])

for unit in range(6):
    key = Store.key("test", 1, unit=unit)
    assert bytes(store.get_or_make(key, lambda: make(unit), leased=True)) == bytes([unit])
"""


def test_processes_of_one_store_make_no_unit_twice(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    command = [sys.executable, "-c", SIX_UNITS, tmp_path / "store", made]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert sorted(path.name.split("-")[0] for path in made.iterdir()) == list("012345")
    assert list((tmp_path / "store" / "leases").iterdir()) == []


def test_a_unit_that_fails_gives_its_lease_up(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail() -> bytes:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        store.get_or_make("a" * 64, fail, leased=True)
    assert list((tmp_path / "leases").iterdir()) == []


def test_what_killed_owners_left_goes_when_room_is_made(tmp_path: Path) -> None:
    old = owner(tmp_path / "leases", "old", 1, "elsewhere", age=4000)
    young = owner(tmp_path / "leases", "young", 1, "elsewhere", age=1000)
    Store(tmp_path, 1000).put("a" * 64, bytes(500))
    assert young.exists() and not old.exists()
