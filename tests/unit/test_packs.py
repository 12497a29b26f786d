"""Units that stand in files of the results: the store has a link to the file and writes no byte again."""

import errno
import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from quantmill import files
from quantmill.packs import Packs, Place
from quantmill.progress import Log
from quantmill.store import Store, Unit

KEYS = [Store.key("x", number) for number in range(3)]
PAYLOADS = [bytes([number]) * (2 << 20 >> number) for number in range(3)]


def write(store: Store, path: Path, *, fail: bool = False, keys: list[str] = KEYS) -> None:
    """A file of units, as a stage writes one; `fail` before its end."""
    with files.writing(path) as file:
        file.write(b"head")
        with store.pack(Path(file.name)) as record:
            for key, payload in zip(keys, PAYLOADS, strict=True):
                unit = store.find_or_make(key, lambda payload=payload: payload, keep=False)
                offset = file.tell()
                file.write(unit.payload)
                file.flush()
                record(unit, offset)
            if fail:
                raise RuntimeError("stop")


def payloads(store: Store) -> list[bytes | None]:
    units = [store.get(key) for key in KEYS]
    return [None if unit is None else bytes(unit) for unit in units]


def bytes_of(store: Store) -> int:
    return sum(path.stat().st_size for path in store.units.glob("*/*"))


def test_a_unit_in_a_file_is_written_once(tmp_path: Path) -> None:
    store, path = Store(tmp_path / "store"), tmp_path / "x.gguf"
    write(store, path)
    assert payloads(Store(tmp_path / "store")) == PAYLOADS
    assert bytes_of(store) == 3 * 80
    (pack,) = (tmp_path / "store/packs").glob("*/data")
    assert pack.samefile(path)
    assert (store.made, store.reused) == (3, 0)


@pytest.mark.parametrize("end", ["deleted", "failed"])
def test_units_outlive_the_file_s_name(tmp_path: Path, end: str) -> None:
    store, path = Store(tmp_path / "store"), tmp_path / "x.gguf"
    if end == "failed":
        with pytest.raises(RuntimeError, match="stop"):
            write(store, path, fail=True)
    else:
        write(store, path)
        path.unlink()
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]
    assert payloads(store) == PAYLOADS


def test_reading_changes_no_time_of_the_file(tmp_path: Path) -> None:
    """Snakemake compares it; the use of a pack is noted beside it."""
    store, path = Store(tmp_path / "store"), tmp_path / "x.gguf"
    write(store, path)
    (used,) = (tmp_path / "store/packs").glob("*/used")
    for file in (path, used):
        os.utime(file, ns=(10**18, 10**18))
    assert payloads(store) == PAYLOADS
    assert path.stat().st_mtime_ns == 10**18
    assert used.stat().st_mtime_ns > 10**18


@pytest.mark.parametrize("harm", ["edited", "shortened", "torn place", "no pack"])
def test_what_is_not_there_any_more_is_made_again(tmp_path: Path, harm: str) -> None:
    store, path = Store(tmp_path / "store"), tmp_path / "x.gguf"
    write(store, path)
    place = store.units / KEYS[1][0] / KEYS[1]
    if harm == "edited":
        with path.open("r+b") as file:
            file.seek(4 + len(PAYLOADS[0]) + 5)
            file.write(b"!")
    elif harm == "shortened":
        os.truncate(path, 4 + len(PAYLOADS[0]) + 5)
    elif harm == "torn place":
        place.write_bytes(place.read_bytes()[:-8] + bytes(8))
    else:
        shutil.rmtree(tmp_path / "store/packs")
    left = {"shortened": [True, False, False], "no pack": [False] * 3}.get(harm, [True, False, True])
    assert [payload is not None for payload in payloads(store)] == left
    assert not place.exists()
    assert store.get_or_make(KEYS[1], lambda: PAYLOADS[1]) == PAYLOADS[1]
    assert store.get(KEYS[1]) == PAYLOADS[1]


def test_a_second_file_reads_the_first_one_s_units_and_leaves_them_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    write(store, tmp_path / "one")
    write(store, tmp_path / "two")
    assert (store.made, store.reused) == (3, 3)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    (pack,) = (tmp_path / "store/packs").glob("*/data")
    assert pack.samefile(tmp_path / "one")


def test_what_takes_room_in_the_store_moves_to_the_new_file(tmp_path: Path) -> None:
    """A whole unit, as of an older version, and those of a file that was deleted."""
    store = Store(tmp_path / "store", max_bytes=4 << 20)
    write(store, tmp_path / "one", keys=[*KEYS[:2], Store.key("y", 1)])
    store.put(KEYS[2], PAYLOADS[2])
    (tmp_path / "one").unlink()
    write(store, tmp_path / "two")
    assert store.reused == 3
    data = {path.samefile(tmp_path / "two") for path in (tmp_path / "store/packs").glob("*/data")}
    assert data == {True, False}
    assert bytes_of(store) == 4 * 80
    shutil.rmtree(next(p for p in (tmp_path / "store/packs").iterdir() if (p / "data").stat().st_nlink == 1))
    assert payloads(store) == PAYLOADS


def test_a_pack_counts_once_its_file_is_gone_and_no_sooner(tmp_path: Path) -> None:
    size = sum(map(len, PAYLOADS))
    store = Store(tmp_path / "store", max_bytes=size // 2)
    write(store, tmp_path / "x.gguf")
    Store(tmp_path / "store", max_bytes=size // 2).put("a" * 64, bytes(size // 4))
    assert payloads(store) == PAYLOADS
    (tmp_path / "x.gguf").unlink()
    Store(tmp_path / "store", max_bytes=size // 2).put("b" * 64, bytes(size // 4))
    assert payloads(store) == [None] * 3
    assert list((tmp_path / "store/packs").iterdir()) == []
    assert not any((store.units / key[0] / key).exists() for key in KEYS)


def test_a_pack_that_no_unit_is_in_goes_first(tmp_path: Path) -> None:
    size = sum(map(len, PAYLOADS))
    store = Store(tmp_path / "store")
    write(store, tmp_path / "one")
    (tmp_path / "one").unlink()
    write(store, tmp_path / "two")  # places anew
    (tmp_path / "two").unlink()
    time.sleep(0.01)
    for used in (tmp_path / "store/packs").glob("*/used"):
        refers = Place.parse((store.units / KEYS[0][0] / KEYS[0]).read_bytes()).pack == used.parent.name  # type: ignore[union-attr]
        os.utime(used, (1, 1) if refers else None)  # the one that is needed is the longest unused
    Store(tmp_path / "store", max_bytes=size * 3 // 2).put("a" * 64, bytes(size // 10))
    assert payloads(store) == PAYLOADS


def test_dangling_places_go_where_room_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    write(store, tmp_path / "one")
    shutil.rmtree(tmp_path / "store/packs")
    Store(tmp_path / "store", max_bytes=100).put("a" * 64, bytes(20))
    assert [path.name for path in store.units.glob("*/*")] == []


def test_nothing_is_left_of_a_file_without_units(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.pack(tmp_path / "none"):
        pass
    assert not (tmp_path / "store/packs").exists()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_where_no_link_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """It is known before a file is begun; nothing is left of the trial."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    packs = Packs(tmp_path / "packs")
    (tmp_path / "results").mkdir()
    assert packs.can_link(tmp_path / "results")
    monkeypatch.setattr(os, "link", refuse)
    assert not packs.can_link(tmp_path / "results")
    assert not packs.can_link(tmp_path / "nowhere")
    assert [*(tmp_path / "results").iterdir(), *(tmp_path / "packs").iterdir()] == []
    store = Store(tmp_path / "store", log=Log(tmp_path / "log"))
    write(store, tmp_path / "x.gguf")  # it comes as a surprise
    assert os.strerror(number) in (tmp_path / "log").read_text("utf-8")
    assert list((tmp_path / "store/packs").iterdir()) == []


def test_left_over_folders_of_packs_go_after_an_hour(tmp_path: Path) -> None:
    packs = Packs(tmp_path)
    for name, age in (("old", 4000), ("new", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "used").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / ".link.0.part").touch()
    os.utime(tmp_path / ".link.0.part", (0, 0))
    assert list(packs.held()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_an_empty_unit_in_a_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with files.writing(tmp_path / "x") as file, store.pack(Path(file.name)) as record:
        record(Unit(KEYS[0], b"", hashlib.sha256(b"").digest()), 0)
    assert store.get(KEYS[0]) == b""
