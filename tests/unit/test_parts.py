"""What killed writers leave is removed, and nothing of those that live."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from limits import WORKFLOW
from quantmill import files, parts

WRITER = """
import sys, time
from pathlib import Path
from quantmill import files
kind, path = getattr(files, sys.argv[1]), Path(sys.argv[2])
with kind(path) as made:
    if sys.argv[1] == "building":
        (made / "1.gguf").write_bytes(b"half")
    print("begun", flush=True)
    time.sleep(60)
"""


@contextmanager
def writer(kind: str, path: Path) -> Iterator[Callable[[], None]]:
    """A process that writes `path` while the block runs, or until it is killed; its part is old."""
    command = [sys.executable, "-c", WRITER, kind, str(path)]
    environment = os.environ | {"PYTHONPATH": str(WORKFLOW)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:

        def kill() -> None:
            process.kill()
            process.wait()

        try:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            (part,) = path.parent.glob(f".{path.name}.*.part")
            os.utime(part, (time.time() - 2 * parts.YOUNG,) * 2)
            yield kill
        finally:
            kill()


def write(kind: str, path: Path) -> None:
    with getattr(files, kind)(path):
        pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["writing", "building"])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.gguf"
    with writer(kind, path) as kill:
        kill()
        assert len(names(tmp_path)) == 1
        write(kind, tmp_path / "gguf")
        write(kind, tmp_path / "y.x.gguf")
        assert len(names(tmp_path)) == 3  # not theirs
        write(kind, path)
    assert names(tmp_path) == ["gguf", "x.gguf", "y.x.gguf"]


@pytest.mark.parametrize("kind", ["writing", "building"])
def test_what_a_living_writer_has_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.gguf"
    with writer(kind, path):
        write(kind, path)
        parts.sweep_below(tmp_path)
        assert len(names(tmp_path)) == 2


def test_a_young_part_stays(tmp_path: Path) -> None:
    """Its writer may not have locked it yet."""
    part = tmp_path / ".x.gguf.00112233.part"
    part.touch()
    parts.sweep(tmp_path / "x.gguf")
    assert part.exists()
    os.utime(part, (0, 0))
    parts.sweep(tmp_path / "x.gguf")
    assert not part.exists()


def test_all_results_are_swept_but_for_hidden_folders(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("m/gguf", "m/.publish", ".store/units/a")]
    left = [folder / ".x.gguf.00112233.part" for folder in folders]
    whole = tmp_path / "m/gguf/.x.part"
    inner = tmp_path / "m/gguf/.x.44556677.part/1.gguf"
    for path in (*left, whole, inner):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    os.utime(inner.parent, (0, 0))
    parts.sweep_below(tmp_path)
    assert [path.exists() for path in (*left, whole, inner.parent)] == [False, True, True, True, False]
    parts.sweep_below(tmp_path / "nowhere")


def test_without_locks_files_are_written_and_none_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    part = tmp_path / ".x.gguf.00112233.part"
    part.touch()
    os.utime(part, (0, 0))
    monkeypatch.setattr(fcntl, "flock", refuse)
    write("writing", tmp_path / "x.gguf")
    write("building", tmp_path / "y")
    assert names(tmp_path) == [part.name, "x.gguf", "y"]


def test_a_unit_of_the_store_is_written_without_a_look_at_its_folder(tmp_path: Path) -> None:
    part = tmp_path / ".x.00112233.part"
    part.touch()
    os.utime(part, (0, 0))
    files.write_atomically(tmp_path / "x", b"unit", durable=False)
    assert part.exists()


def test_a_file_is_held_until_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it could be swept while a slow disk takes its bytes."""
    swept = []
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        (part,) = tmp_path.glob(".x.*.part")
        os.utime(part, (0, 0))
        parts.sweep(tmp_path / "x")
        swept.append(not part.exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    files.write_atomically(tmp_path / "x", b"whole")
    assert (swept, (tmp_path / "x").read_bytes()) == ([False], b"whole")
