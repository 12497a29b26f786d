"""The content-addressed store: found again, checked, capped, shared."""

import mmap
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import limits
from quantmill import machine
from quantmill.progress import Log
from quantmill.store import Store

WORKFLOW = Path(__file__).parents[2] / "workflow"


def unit_file(store: Store, key: str) -> Path:
    return store.units / key[0] / key


def test_key_depends_on_all_that_determines_the_unit() -> None:
    key = Store.key("tensor", 1, source="ab", type="q4_K")
    assert key == Store.key("tensor", 1, type="q4_K", source="ab")
    others = {
        Store.key("tensor", 2, source="ab", type="q4_K"),
        Store.key("shard", 1, source="ab", type="q4_K"),
        Store.key("tensor", 1, source="ab", type="q5_K"),
        Store.key("tensor", 1, source="q4_K", type="ab"),
        Store.key("tensor", 1, source="ab"),
    }
    assert len(others) == 5
    assert key not in others


def test_a_unit_is_made_once_and_counted(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"payload"

    key = Store.key("x", 1)
    first, second = Store(tmp_path), Store(tmp_path)
    assert [first.get_or_make(key, make), first.get_or_make(key, make)] == [b"payload"] * 2
    assert second.get_or_make(key, make) == b"payload"
    assert len(made) == 1
    assert (first.made, first.reused, second.made, second.reused) == (1, 1, 0, 1)


def test_a_missing_unit_is_none(tmp_path: Path) -> None:
    assert Store(tmp_path / "nothing" / "here").get(Store.key("x", 1)) is None


def test_an_empty_payload_is_a_unit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("a" * 64, b"")
    assert store.get("a" * 64) == b""


@pytest.mark.parametrize("damage", ["payload", "digest", "magic", "torn", "torn head", "empty", "longer"])
def test_a_damaged_unit_is_made_again(tmp_path: Path, damage: str) -> None:
    store, key = Store(tmp_path), Store.key("x", 1)
    store.put(key, b"payload" * 100)
    path = unit_file(store, key)
    data = bytearray(path.read_bytes())
    flipped = {"payload": len(data) // 2 + 40, "digest": 20, "magic": 0}
    if damage in flipped:
        data[flipped[damage]] ^= 1
    lengths = {"torn": len(data) - 1, "torn head": 30, "empty": 0}
    path.write_bytes(data[: lengths.get(damage, len(data))] + (b"!" if damage == "longer" else b""))

    assert store.get(key) is None
    assert not path.exists()
    assert store.get_or_make(key, lambda: b"payload" * 100) == b"payload" * 100
    assert (store.made, store.reused) == (1, 0)
    assert store.get(key) == b"payload" * 100


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path, max_bytes=10_000)
    keys = [Store.key("x", number) for number in range(9)]
    for age, key in enumerate(keys):
        store.put(key, bytes(1000))
        os.utime(unit_file(store, key), ns=(0, (age + 1) * 10**9))
    later = Store(tmp_path, max_bytes=10_000)
    assert later.get(keys[0]) == bytes(1000)  # used just now: no longer the oldest
    later.put(Store.key("x", 9), bytes(1000))

    remaining = [key for key in keys if unit_file(store, key).exists()]
    assert keys[0] in remaining
    assert keys[1] not in remaining
    assert remaining[1:] == keys[-(len(remaining) - 1) :]
    assert sum(path.stat().st_size for path in store.units.glob("*/*")) <= 9_000


@pytest.mark.parametrize("backwards", [False, True])
def test_a_cap_below_what_a_run_uses_still_saves_what_it_holds(tmp_path: Path, backwards: bool) -> None:
    """Least recently used first, each unit would go just before it is needed."""
    keys = [Store.key("x", number) for number in range(60)]
    for turn in range(3):
        store = Store(tmp_path / "store", max_bytes=40_000, log=Log(tmp_path / "log"))
        store.expect(keys, 60_000)
        for key in reversed(keys) if backwards and turn else keys:
            assert store.get_or_make(key, lambda: bytes(952)) == bytes(952)
        assert store.reused == (40 if turn else 0)
        (line,) = (tmp_path / "log").read_text("utf-8").splitlines()
        assert line == (
            f"warning: {tmp_path}/store: the cap, 39.1 KiB, is full of what is being used: "
            "further finished work is not kept; set `store: {max: 1 MiB}` or more"
        )


def test_the_cap_that_would_do_is_named(tmp_path: Path) -> None:
    def warned(expected: int) -> str:
        store = Store(tmp_path / str(expected), max_bytes=2 << 20, log=Log(tmp_path / "log"))
        store.expect([], expected)
        for number in range(3):
            store.put(Store.key("x", number), bytes(1 << 20))
        return (tmp_path / "log").read_text("utf-8")

    assert "{max: 3 MiB}" in warned(0)
    assert "{max: 7 GiB}" in warned((6 << 30) + 1)


def test_what_is_not_expected_goes_for_what_is(tmp_path: Path) -> None:
    old, new = ([Store.key(kind, number) for number in range(10)] for kind in "xy")
    before = Store(tmp_path, max_bytes=11_000)
    for key in old:
        before.put(key, bytes(952))
    store = Store(tmp_path, max_bytes=11_000, log=Log(tmp_path / "log"))
    store.expect(old[:3])
    for key in new[:8]:
        store.put(key, bytes(952))
    assert [before.get(key) is not None for key in old] == [True] * 3 + [False] * 7
    assert all(store.get(key) is not None for key in new[:8])
    assert (tmp_path / "log").read_text("utf-8") == ""


def test_a_unit_may_shrink_whatever_the_cap(tmp_path: Path) -> None:
    store = Store(tmp_path, max_bytes=1000, log=Log(tmp_path / "log"))
    store.put("a" * 64, bytes(900))
    store.put("b" * 64, bytes(900))
    store.put("a" * 64, b"")
    assert (store.get("a" * 64), store.get("b" * 64)) == (b"", None)


def test_nothing_is_evicted_under_the_cap(tmp_path: Path) -> None:
    store = Store(tmp_path, max_bytes=20_000)
    keys = [Store.key("x", number) for number in range(10)]
    for key in keys:
        store.put(key, bytes(1000))
    assert all(store.get(key) == bytes(1000) for key in keys)


def test_a_unit_above_the_cap_is_not_kept_and_does_no_harm(tmp_path: Path) -> None:
    store = Store(tmp_path, max_bytes=1000)
    assert store.get_or_make("a" * 64, lambda: bytes(5000)) == bytes(5000)
    assert store.get("a" * 64) is None


def test_left_over_temporary_files_go_after_an_hour(tmp_path: Path) -> None:
    store = Store(tmp_path, max_bytes=1000)
    folder = store.units / "a"
    folder.mkdir(parents=True)
    (folder / ".old.part").write_bytes(b"x")
    os.utime(folder / ".old.part", (0, 0))
    (folder / ".new.part").write_bytes(b"x")
    store.put("a" * 64, bytes(500))
    assert not (folder / ".old.part").exists()
    assert (folder / ".new.part").exists()


SHARER = """
import sys
from pathlib import Path
from quantmill.store import Store
store = Store(Path(sys.argv[1]), max_bytes=400_000)
for turn in range(3):
    for number in range(60):
        payload = number.to_bytes(2, "little") * 4000
        assert store.get_or_make(Store.key("x", number), lambda: payload) == payload
print(store.made + store.reused)
"""


def test_two_processes_at_once_do_no_harm(tmp_path: Path) -> None:
    """Both make, read and (the cap is below what they write) evict the same units."""
    command = [sys.executable, "-c", SHARER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(WORKFLOW)}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "180\n"), errors
        assert all("the cap, 390.6 KiB, is full" in line for line in errors.splitlines())
    sizes = [path.stat().st_size for path in (tmp_path / "units").glob("*/*")]
    assert sum(sizes) <= 400_000 + 2 * 8100
    assert not list((tmp_path / "units").glob("*/.*"))


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may enter, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_another_user(folder: Path, code: str) -> tuple[list[str], list[str]]:
    """What `code` prints and what is warned of, where it may not write to `store`, a Store in `folder`."""
    folders = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]
    for path in folders:
        path.chmod(path.stat().st_mode & 0o555)
    imports = "import sys\nfrom pathlib import Path\nfrom quantmill.store import Store\n"
    done = limits.without_rights(imports, f"store = Store(Path(sys.argv[1]), 1000)\n{code}", folder)
    for path in folders:
        path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_units_of_another_user_are_used(shared: Path) -> None:
    Store(shared).put("a" * 64, b"theirs")
    code = "print(bytes(store.get_or_make('a' * 64, None)), store.reused)"
    assert as_another_user(shared, code) == (["b'theirs' 1"], [])


@pytest.mark.parametrize("harm", ["closed unit", "damaged unit", "closed folder", "no unit", "no folder"])
def test_where_a_store_cannot_be_written_work_is_done_and_not_kept(shared: Path, harm: str) -> None:
    store = Store(shared)
    store.put("a" * 64, b"theirs")
    path = unit_file(store, "a" * 64)
    if harm == "closed unit":
        path.chmod(0)
    elif harm == "damaged unit":
        path.write_bytes(b"damaged")
    elif harm == "closed folder":
        path.parent.chmod(0)
    elif harm == "no unit":
        path.unlink()
    else:
        shutil.rmtree(store.units)
    code = """
for _ in range(2):
    print(bytes(store.get_or_make('a' * 64, lambda: b'ours')), store.made)
"""
    warning = (
        f"warning: {shared}: the store cannot be written (Permission denied), finished work is not kept; "
        "free some space, or give `store: {path}` another folder"
    )
    assert as_another_user(shared, code) == (["b'ours' 1", "b'ours' 2"], [warning])


def test_a_file_in_the_place_of_the_store_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    store = Store(tmp_path / "store", log=Log(tmp_path / "log"))
    for key in ("a" * 64, "b" * 64):
        assert store.get_or_make(key, lambda: b"ours") == b"ours"
    (line,) = (tmp_path / "log").read_text("utf-8").splitlines()
    assert line.startswith(f"warning: {tmp_path}/store: the store cannot be written (")


def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a full disk: the limit on a file's size stops it in the middle."""
    store = Store(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        assert store.get_or_make("a" * 64, lambda: bytes(1 << 20)) == bytes(1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "(File too large), finished work is not kept" in capsys.readouterr().err
    assert list((store.units / "a").iterdir()) == []
    assert store.get_or_make("a" * 64, lambda: b"now") == b"now"
    assert store.get("a" * 64) == b"now"


def test_the_store_leaves_room_for_an_output_on_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    store = Store(tmp_path / "store", log=Log(tmp_path / "log"))
    keys = [Store.key("x", number) for number in range(4)]
    with store.reserving(tmp_path, 9_000) as written:
        assert store.get_or_make(keys[0], lambda: bytes(900)) == bytes(900)
        free = 9_052
        for key in keys[1:3]:
            assert store.get_or_make(key, lambda: bytes(900)) == bytes(900)
        written(4_000)
        free = 5_952  # as much is left to be written as before, and the unit fits beside it
        store.put(keys[2], bytes(900))
    free = 0
    store.put(keys[3], bytes(900))
    assert [store.get(key) is not None for key in keys] == [True, False, True, True]
    (line,) = (tmp_path / "log").read_text("utf-8").splitlines()
    assert (
        "the store cannot be written (the disk has room for the output alone), finished work is not" in line
    )


def test_a_store_that_is_deleted_meanwhile_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.reserving(tmp_path, 1):
        shutil.rmtree(tmp_path / "store")
        store.put("a" * 64, b"x")
    assert store.get("a" * 64) == b"x"


def test_a_disk_that_the_output_is_not_on_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    store = Store(tmp_path)
    with store.reserving(Path("/proc/self"), 1 << 60):
        store.put("a" * 64, b"x")
    assert store.get("a" * 64) == b"x"


def test_what_may_not_be_deleted_stays_and_counts(shared: Path) -> None:
    store = Store(shared)
    store.put("a" * 64, bytes(900))
    (store.units / "a").chmod(0o555)
    (store.units / "b").mkdir(mode=0)
    (store.units / "c").mkdir()
    (store.units / "c").chmod(0o777)
    code = """
store = Store(Path(sys.argv[1]), 1000)
store.put('c' * 64, bytes(500))
print(sorted(path.name[0] for path in store.units.glob('?/?*')))
"""
    done = limits.without_rights(
        "import sys\nfrom pathlib import Path\nfrom quantmill.store import Store\n", code, shared
    )
    for name in "ab":
        (store.units / name).chmod(0o755)
    assert done.stdout == "['a']\n"
    assert "the cap, 1.0 KiB, is full of what is being used" in done.stderr


def test_folders_and_units_follow_umask_and_group(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    old = os.umask(0o002)
    try:
        store = Store(tmp_path / "store")
        store.put("a" * 64, b"x")
    finally:
        os.umask(old)
    unit = unit_file(store, "a" * 64)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (unit, unit.parent, store.units, store.folder)]
    assert modes == [0o664, 0o2775, 0o2775, 0o2775]


def test_any_number_of_small_units_is_held_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = [Store.key("x", number) for number in range(200)]
    for key in keys:
        store.put(key, key.encode())
    with limits.few_files():
        assert [bytes(unit or b"").decode() for unit in [store.get(key) for key in keys]] == keys


def test_units_of_other_stores_are_used_and_left_as_they_are(tmp_path: Path) -> None:
    key = Store.key("test", 1, unit="shared")
    shared, own = tmp_path / "shared", tmp_path / "own"
    Store(shared).put(key, b"made elsewhere")
    [unit] = [path for path in (shared / "units").rglob("*") if path.is_file()]
    os.utime(unit, (1000, 1000))
    store = Store(own, others=[tmp_path / "none", shared])
    assert store.has(key)
    assert store.get_or_make(key, lambda: b"made here") == b"made elsewhere"
    assert (store.made, store.reused) == (0, 1)
    assert unit.stat().st_mtime == 1000
    unit.write_bytes(b"damaged")
    assert store.get_or_make(key, lambda: b"made here") == b"made here"
    assert unit.read_bytes() == b"damaged"
    assert bytes(Store(own).get(key) or b"") == b"made here"


def test_on_a_network_nothing_is_mapped_that_another_machine_may_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, large = Store.key("test", 1, unit="large"), bytes(3 << 20)
    Store(tmp_path).put(key, large)
    here = Store(tmp_path).get(key)
    monkeypatch.setattr(machine, "on_network", lambda folder: True)
    there = Store(tmp_path).get(key)
    assert here is not None and there is not None and here == there == large
    assert isinstance(here.obj, mmap.mmap) and isinstance(there.obj, bytes)
