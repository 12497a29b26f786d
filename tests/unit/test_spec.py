"""Canonical specs and the memo of digests."""

import hashlib
import json
import math
import os
from pathlib import Path

import pytest

from quantmill import spec
from quantmill.errors import QuantmillError
from quantmill.stages import VERSIONS


def test_key_order_does_not_matter_and_values_do() -> None:
    assert (
        spec.canonical({"b": 1, "a": [1, 2]}) == spec.canonical({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'
    )
    swapped = spec.canonical({"x": 2, "y": 1})
    assert spec.canonical({"x": 1, "y": 2}) != swapped
    assert spec.digest({"x": 1, "y": 2}) != spec.digest({"y": 1, "x": 2})


def test_what_has_no_canonical_form_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        spec.canonical(math.nan)
    with pytest.raises(TypeError):
        spec.canonical({"path": Path("x")})


def test_digest_of_text_is_that_of_its_utf8() -> None:
    assert spec.digest("ä") == hashlib.sha256("ä".encode()).hexdigest()
    assert spec.digest([1]) == hashlib.sha256(b"[1]").hexdigest()


def test_make_holds_stage_version_config_and_origins() -> None:
    made = json.loads(spec.make("quantize.write", {"threads": None}, {"plan": "ab"}, engine="cd"))
    assert made == {
        "stage": "quantize.write",
        "version": VERSIONS["quantize.write"],
        "config": {"threads": None},
        "from": {"plan": "ab"},
        "engine": "cd",
    }


def test_a_long_spec_is_a_file_by_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "specs"
    short, long, other = (
        spec.make("card.write", {"about": text}, {}) for text in ("ü", "ü" * 29999, "u" * 150000)
    )
    assert spec.argument(short, folder) == short
    assert not folder.exists()
    assert spec.argument(long, folder) == f"@{spec.digest(long)}" != spec.argument(other, folder)
    for one in (short, long, other):
        assert spec.read_argument(spec.argument(one, folder), folder) == json.loads(one)
    # It is written again where it was deleted, and a damaged one is not taken.
    (folder / spec.digest(long)).unlink()
    argument = spec.argument(long, folder)
    (folder / spec.digest(long)).write_bytes(b"\xff")
    with pytest.raises(QuantmillError, match="no such spec, or not whole; delete it"):
        spec.read_argument(argument, folder)


@pytest.mark.parametrize("argument", ["", "x", "[]", "3", '{"a": 1}', "null"])
def test_what_is_no_spec_is_refused(argument: str, tmp_path: Path) -> None:
    with pytest.raises(QuantmillError, match="no canonical JSON"):
        spec.read_argument(argument, tmp_path)


def test_memo_reads_a_file_once_and_sees_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    memo = spec.DigestMemo(tmp_path / "digests")
    first = memo.sha256(path)
    assert first == hashlib.sha256(b"one").hexdigest()

    read = []
    real = spec.file_sha256
    monkeypatch.setattr(spec, "file_sha256", lambda path: read.append(path) or real(path))
    assert memo.sha256(path) == first
    assert read == []

    path.write_bytes(b"two")
    os.utime(path, ns=(0, 1))
    assert memo.sha256(path) == hashlib.sha256(b"two").hexdigest()
    assert read == [path]


def test_a_torn_note_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    memo = spec.DigestMemo(tmp_path / "digests")
    digest = memo.sha256(path)
    (note,) = (tmp_path / "digests").iterdir()
    note.write_text(digest[:10], encoding="utf-8")
    assert memo.sha256(path) == digest


def test_remembered_digest_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "new.gguf"
    path.write_bytes(b"one")
    memo = spec.DigestMemo(tmp_path / "digests")
    memo.remember(path, "0" * 64)
    assert memo.sha256(path) == "0" * 64


@pytest.mark.parametrize("harm", ["no folder", "no text", "no file"])
def test_notes_that_cannot_be_used_only_cost_time(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    memo = spec.DigestMemo(tmp_path / "digests")
    if harm == "no folder":
        memo.folder.touch()
    else:
        memo.sha256(path)
        (note,) = memo.folder.iterdir()
        note.unlink()
        if harm == "no text":
            note.write_bytes(b"\xff" * 64)
        else:
            (note / "x").mkdir(parents=True)
    for _ in range(2):
        assert memo.sha256(path) == hashlib.sha256(b"one").hexdigest()


def test_missing_file_and_folder_are_one_line(tmp_path: Path) -> None:
    memo = spec.DigestMemo(tmp_path / "digests")
    with pytest.raises(QuantmillError, match=r"none\.gguf: no such file; check the path"):
        memo.sha256(tmp_path / "none.gguf")
    with pytest.raises(QuantmillError, match="cannot be read"):
        memo.sha256(tmp_path)
