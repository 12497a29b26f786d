"""Whole files or none."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantmill import files
from quantmill.errors import QuantmillError


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "x.bin"
    with files.writing(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.bin"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_an_error_leaves_what_stood_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), files.writing(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.bin"]


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files.write_text(tmp_path / "x", "text")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_json_is_sorted_and_round_trips(tmp_path: Path) -> None:
    value = {"b": [1, 2.5], "a": "ä"}
    files.write_json(tmp_path / "x.json", value)
    assert (tmp_path / "x.json").read_text("utf-8") == '{\n "a": "ä",\n "b": [\n  1,\n  2.5\n ]\n}\n'
    assert files.read_json(tmp_path / "x.json") == value


def test_no_nan_is_ever_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_tables_round_trip(tmp_path: Path) -> None:
    files.write_table(tmp_path / "x.tsv", ["name", "bytes"], [["a", 1], ["b", 2]])
    assert (tmp_path / "x.tsv").read_text("utf-8") == "name\tbytes\na\t1\nb\t2\n"
    assert files.read_table(tmp_path / "x.tsv") == [{"name": "a", "bytes": "1"}, {"name": "b", "bytes": "2"}]


def test_only_a_line_feed_ends_a_line() -> None:
    inner = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
    assert files.split_lines(f"{inner}\r\n\n{inner}\n") == [inner, "", inner]
    assert files.split_lines(inner) == [inner]
    assert files.split_lines("") == []


def test_a_cell_of_a_table_may_hold_what_splitlines_splits_at(tmp_path: Path) -> None:
    names = [f"a{end}b" for end in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"]
    files.write_table(tmp_path / "x.tsv", ["name", "bytes"], [[name, 1] for name in names])
    assert [row["name"] for row in files.read_table(tmp_path / "x.tsv")] == names


TEXT = "Äpfel, 漢字 and 😀\nsecond line\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_users_text_is_read_as_its_byte_order_mark_says(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode(encoding))
    assert files.read_user_text(path) == TEXT


@pytest.mark.parametrize("order", ["utf-16-be", "utf-32-be"])
def test_either_byte_order_is_read(tmp_path: Path, order: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(("\ufeff" + TEXT).encode(order))
    assert files.read_user_text(path) == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.encode("utf-16-le"), "full of NUL bytes: .* UTF-16 without .*; save .* -f UTF-16LE"),
        ("plain".encode("utf-16-be"), "UTF-16 without .* -f UTF-16BE"),
        ("plain".encode("utf-32-le"), "UTF-32 without .* -f UTF-32LE"),
        ("plain".encode("utf-32-be"), "UTF-32 without .* -f UTF-32BE"),
        ("Ä".encode("latin-1") * 9, "is not UTF-8; save it as UTF-8, such as by `iconv -f ISO-8859-1 -t"),
        ("漢字和文字都是字".encode("gbk"), "is not UTF-8; save"),
        ("Ä plain text".encode("latin-1"), r"is not UTF-8 \(at byte 0\)"),
        (TEXT.encode("utf-16")[:-1], "no whole UTF-16 text"),
        (b"text" * 100 + b"\0", "holds NUL characters"),
    ],
)
def test_what_is_no_text_is_refused_with_a_cure(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    with pytest.raises(QuantmillError, match=f"^{path}: .*{message}"):
        files.read_user_text(path)


def test_a_missing_text_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(QuantmillError, match="none: no such file; say which"):
        files.read_user_text(tmp_path / "none", "say which")
    with pytest.raises(QuantmillError, match="cannot be read \\(Is a directory"):
        files.read_user_text(tmp_path)


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes('{"0": 1.5}'.encode("utf-16"))
    assert files.read_json(tmp_path / "x.json") == {"0": 1.5}


@pytest.mark.parametrize("read", [files.read_json, files.read_table])
def test_missing_and_empty_files_are_one_line(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(QuantmillError, match="none: no such file"):
        read(tmp_path / "none")
    (tmp_path / "empty").write_text("", encoding="utf-8")
    with pytest.raises(QuantmillError, match=r"empty: .*delete it to have it made again"):
        read(tmp_path / "empty")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not permitted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_one_line_and_loses_nothing(small_disk: Path) -> None:
    path = small_disk / "x.gguf"
    files.write_atomically(path, b"old")
    with pytest.raises(QuantmillError, match=r"x\.gguf: cannot be written \(No space left on device\); free"):
        files.write_atomically(path, bytes(1 << 20))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in small_disk.iterdir()] == ["x.gguf"]


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(QuantmillError, match=r"y\.txt: cannot be written"):
        files.write_text(tmp_path / "x" / "y.txt", "text")


@pytest.mark.parametrize("mapped_above", [0, 1 << 20])
def test_a_part_of_a_file_read_or_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped_above: int
) -> None:
    monkeypatch.setattr(files, "_MAPPED_ABOVE", mapped_above)
    path, data = tmp_path / "x", bytes(range(256)) * 40
    path.write_bytes(data)
    for offset, size in ((0, None), (0, 10), (5, 4096), (4096, 1), (9000, None), (10240, 0)):
        result = files.part_of(path, offset, size)
        assert result == (data[offset:] if size is None else data[offset : offset + size])
    path.unlink()
    with pytest.raises(FileNotFoundError):
        files.part_of(path)


def test_a_part_past_the_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    with pytest.raises(QuantmillError, match="x: has become shorter since its header was read"):
        files.part_of(tmp_path / "x", 90, 11)


def test_a_folder_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(QuantmillError, match="x: cannot be written"):
        files.write_text(tmp_path / "x", "text")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
