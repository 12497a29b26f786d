"""Digests: one pass for all that is known of a file, notes for the whole machine."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import models
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.model import digests
from quantmill.model.digests import Memo
from quantmill.progress import Log

MOE = Path(__file__).parents[2] / "data" / "tiny-moe.gguf"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def memo(tmp_path: Path) -> Memo:
    return Memo([tmp_path / "cache" / "digests", tmp_path / "store" / "digests"])


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read."""
    read: list[str] = []
    real = digests._pass

    def counted(path: Path, size: int, threads: int, done: Callable[[int], None]) -> digests.FileDigests:
        read.append(path.name)
        return real(path, size, threads, done)

    monkeypatch.setattr(digests, "_pass", counted)
    return read


def test_a_file_is_read_once_and_a_change_is_seen(tmp_path: Path, memo: Memo, passes: list[str]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    for _ in range(2):
        assert memo.sha256(path) == sha256(b"one")
    assert passes == ["model.gguf"]
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 1))
    assert memo.sha256(path) == sha256(b"two")
    assert passes == ["model.gguf"] * 2


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_one_pass_gives_the_digests_of_file_and_tensors(
    tmp_path: Path, memo: Memo, passes: list[str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_BLOCK", 10_000)  # no tensor's size is a multiple of it
    content = MOE.read_bytes()
    (known,) = memo.read([MOE], threads)
    for again in memo.read([MOE], threads, tensors=True):
        assert again == known
    assert passes == [MOE.name]
    assert (known.sha256, known.broken) == (sha256(content), "")
    assert known.tensors == {
        one.name: sha256(content[one.offset : one.offset + one.bytes]) for one in read_header(MOE).tensors
    }


def test_the_parts_of_a_split_model_have_tensors_of_their_own(tmp_path: Path, memo: Memo) -> None:
    models.write_llama(tmp_path / "m.gguf", width=64, split_max_tensors=5)
    shards = sorted(tmp_path.glob("m-*.gguf"))
    names = [name for known in memo.read(shards, 4, tensors=True) for name in known.tensors or {}]
    assert names == [tensor.name for tensor in read_header(shards[0]).tensors]


def test_files_are_read_side_by_side(tmp_path: Path, memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other, so that one after the other would never end."""
    meet = threading.Barrier(2)

    def waiting(path: Path, size: int, threads: int, done: Callable[[int], None]) -> digests.FileDigests:
        meet.wait(timeout=20)
        return digests.FileDigests(path.name)

    monkeypatch.setattr(digests, "_pass", waiting)
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(b"x")
    assert [known.sha256 for known in memo.read(paths, 4)] == ["a", "b"]


def test_a_second_project_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = Memo.of_project(tmp_path / "one" / ".store")
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "two" / ".store"))
    assert first.read([MOE], 2) == Memo.of_stage().read([MOE], 2, tensors=True)
    assert passes == [MOE.name]
    assert list((tmp_path / "cache" / "quantmill" / "digests").iterdir())


@pytest.mark.parametrize("value", ["", "relative"])
def test_without_a_cache_folder_it_is_that_of_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Memo.of_project(Path("s")).folders == [tmp_path / ".cache/quantmill/digests", Path("s/digests")]
    monkeypatch.setattr(Path, "home", lambda: Path("~unknown").expanduser())
    assert Memo.of_project(Path("s")).folders == [Path("s/digests")]


def test_a_note_of_an_earlier_version_spares_reading_and_has_no_tensors(
    tmp_path: Path, memo: Memo, passes: list[str]
) -> None:
    known = memo.read([MOE], 1)
    for folder in memo.folders:
        (note,) = folder.iterdir()
        note.write_text(note.read_text("utf-8")[:64], encoding="utf-8")
    assert memo.sha256(MOE) == known[0].sha256
    assert passes == [MOE.name]
    assert memo.read([MOE], 1, tensors=True) == known
    assert passes == [MOE.name] * 2


@pytest.mark.parametrize("harm", ["no folder", "torn", "no text", "no file", "unknown"])
def test_notes_that_cannot_be_used_only_cost_time(tmp_path: Path, memo: Memo, harm: str) -> None:
    expected = Memo([]).read([MOE], 1)
    for folder in memo.folders:
        folder.parent.mkdir()
        if harm == "no folder":
            folder.touch()
            continue
        Memo([folder]).read([MOE], 1)
        (note,) = folder.iterdir()
        data = note.read_bytes()
        note.unlink()
        if harm == "torn":
            note.write_bytes(data[:1000])
        elif harm == "no text":
            note.write_bytes(b"\xff" * 64)
        elif harm == "unknown":
            note.write_bytes(data.replace(b'"broken"', b'"later"'))
        else:
            (note / "x").mkdir(parents=True)
    for _ in range(2):
        assert memo.read([MOE], 1, tensors=True) == expected
        assert memo.sha256(MOE) == expected[0].sha256


def test_a_file_that_is_no_sound_gguf_has_a_digest_all_the_same(tmp_path: Path, memo: Memo) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(MOE.read_bytes()[:-100_000])
    assert memo.read([cut], 2) == [digests.FileDigests(sha256(cut.read_bytes()))]


def test_missing_file_and_folder_are_one_line(tmp_path: Path, memo: Memo) -> None:
    with pytest.raises(QuantmillError, match=r"none\.gguf: no such file; check the path"):
        memo.sha256(tmp_path / "none.gguf")
    with pytest.raises(QuantmillError, match="cannot be read"):
        memo.sha256(tmp_path)


@pytest.mark.parametrize("change", ["replaced", "grown", "cut"])
def test_a_file_that_changes_while_it_is_read_is_refused_and_not_noted(
    tmp_path: Path, memo: Memo, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(100_000))
    monkeypatch.setattr(digests, "_BLOCK", 10_000)
    real = digests._Blocks._free

    def meanwhile(self: digests._Blocks) -> bytearray:
        if change == "replaced":
            (tmp_path / "new").write_bytes(bytes(100_000))
            (tmp_path / "new").replace(path)
        elif change == "cut":
            os.truncate(path, 50_000)
        else:
            with path.open("ab") as file:
                file.write(b"more")
        return real(self)

    monkeypatch.setattr(digests._Blocks, "_free", meanwhile)
    with pytest.raises(QuantmillError) as error:
        memo.sha256(path)
    assert str(error.value) == f"{path}: changed while it was read; start again once it is complete"
    assert not any(folder.exists() for folder in memo.folders)


def test_where_one_file_fails_the_others_are_not_read_to_their_ends(
    tmp_path: Path, memo: Memo, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "bad", tmp_path / "endless"]
    for path in paths:
        path.write_bytes(b"x")

    def endless(path: Path, size: int, threads: int, done: Callable[[int], None]) -> digests.FileDigests:
        if path.name == "bad":
            raise PermissionError(13, "Permission denied")
        while True:
            done(1)

    monkeypatch.setattr(digests, "_pass", endless)
    with pytest.raises(QuantmillError, match=r"bad: cannot be read \(Permission denied\)"):
        memo.read(paths, 4)


def test_what_takes_long_is_reported(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    Memo([]).read([MOE], 2, log, report_above=10**9)
    assert log.path is not None
    assert log.path.read_text("utf-8") == ""
    Memo([]).read([MOE], 2, log)
    first, last = log.path.read_text("utf-8").splitlines()
    assert first.startswith("hashing tiny-moe.gguf: 0.0 of ")
    assert first.endswith(" MiB")
    assert "MiB/s, in " in last
    other = tmp_path / "other"
    other.write_bytes(b"x")
    Memo([]).read([MOE, other], 2, log)
    assert "hashing 2 files: 0.0 of " in log.path.read_text("utf-8")
