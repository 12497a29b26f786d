"""A disk that is full from the n-th write on, for every n: one line, no half file, a right rerun."""

from __future__ import annotations

import errno
import io
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantmill import files, spec
from quantmill.progress import Log
from quantmill.store import Store

DATA = Path(__file__).parents[1] / "data"
LLAMA = DATA / "tiny-llama.gguf"


class Disk:
    """Counts what needs room: making files and folders, writes, syncs; from number `room` on each fails."""

    def __init__(self, room: int) -> None:
        self.room, self.used = room, 0

    def take(self) -> None:
        self.used += 1
        if self.used > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(self, patch: pytest.MonkeyPatch) -> None:
        """Have the files of this process be on it."""
        really_open, sync, make = io.open, os.fsync, os.mkdir

        def opened(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+"):
                return really_open(file, mode, *more, **named)
            self.take()
            return _File(really_open(file, mode, *more, **named), self)

        patch.setattr(io, "open", opened)
        patch.setattr(os, "fsync", lambda descriptor: (self.take(), sync(descriptor)))
        patch.setattr(os, "mkdir", lambda *given, **named: (self.take(), make(*given, **named)))


class _File:
    """A file that is open for writing."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        self._disk.take()
        return int(self._file.write(data))

    def flush(self) -> None:
        self._disk.take()
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _sources(folder: Path) -> list[object]:
    (folder / "a.txt").write_bytes((DATA / "text.txt").read_bytes())
    return [folder / "a.txt"]


_CORPUS = {
    "corpus": "c",
    "seed": 1,
    "chunks": 2,
    "context": 64,
    "sources": [{"name": "a", "weight": 1.0, "column": None, "rows": None}],
}
_RENDER = {"recipe": "Q8_0", "parameters": {"base": "Q8_0"}}

STAGES: dict[str, tuple[Any, dict[str, Any], Callable[[Path], list[object]], dict[str, str]]] = {
    # its config, what its spec is made from, its arguments, its outputs
    "model.manifest": ({}, {}, lambda folder: ["--model", LLAMA], {"manifest": "m.tsv", "facts": "m.json"}),
    "recipe.render": (
        _RENDER,
        {},
        lambda folder: ["--model", LLAMA, "--template", Path("recipes/preset.yaml.j2").absolute()],
        {"out": "r.yaml"},
    ),
    "imatrix.imported": (
        {},
        {"imatrix": "0" * 64},
        lambda folder: ["--model", LLAMA, "--file", DATA / "llama-imatrix-llama.dat"],
        {"gguf": "i.gguf", "dat": "i.dat", "report": "i.json"},
    ),
    "corpus.build": (
        _CORPUS,
        {},
        lambda folder: ["--model", LLAMA, "--sources", *_sources(folder)],
        {"corpus": "c.parquet", "report": "c.json"},
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_at_every_write_of_a_stage(
    tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, made_from, arguments, outputs = STAGES[stage]
    words = ["--spec", spec.make(stage, config, made_from), *map(str, arguments(tmp_path))]

    def run(folder: Path, room: int) -> tuple[int, str]:
        """The exit code, and what was printed."""
        places = [word for name, file in outputs.items() for word in (f"--{name}", str(folder / file))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [stage, *words, *places, "--log", str(folder / "logs" / "log")])
            patch.delitem(sys.modules, f"quantmill.{stage}", raising=False)
            Disk(room).fill(patch)
            try:
                runpy.run_module(f"quantmill.{stage}", run_name="__main__")
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        return code, capsys.readouterr().err

    def held(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    whole = tmp_path / "whole"
    whole.mkdir()
    assert run(whole, 10**9)[0] == 0
    expected = held(whole)
    assert expected.keys() == set(outputs.values())
    folder = tmp_path / "full"
    folder.mkdir()
    for room in range(200):
        code, printed = run(folder, room)
        assert all(expected[name] == content for name, content in held(folder).items()), room
        if code == 0:
            break
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in printed, (room, printed)
        assert "No space left on device" in errors[0] and "; " in errors[0]
    else:
        pytest.fail("never enough room")
    assert room > 2
    assert run(folder, 10**9)[0] == 0
    assert held(folder) == expected


def test_a_full_disk_at_every_write_of_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work goes on without the store, and says so once."""
    for room in range(20):
        disk = Disk(room)
        store = Store(tmp_path / "store", log=Log(tmp_path / "log"))
        with monkeypatch.context() as patch:
            disk.fill(patch)
            assert store.get_or_make("a" * 64, lambda: b"x" * 100) == b"x" * 100
        if disk.used <= room:
            break
        assert store.get("a" * 64) is None
        assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
    assert store.get("a" * 64) == b"x" * 100


def test_a_full_disk_at_every_write_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    files.write_text(folder / "x", "old")
    for room in range(20):
        disk = Disk(room)
        with monkeypatch.context() as patch:
            disk.fill(patch)
            try:
                with files.building(folder) as part:
                    (part / "x").write_text(json.dumps("new"))
            except files.QuantmillError as error:
                assert "cannot be written (No space left on device); free" in str(error)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
        if disk.used <= room:
            break
        assert (folder / "x").read_text() == "old"
    assert (folder / "x").read_text() == '"new"'
