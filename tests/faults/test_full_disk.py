"""A disk that is full from the n-th write on, for every n: one line, no half file, a right rerun."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import runpy
import shlex
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkout import Checkout
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
            pipe = isinstance(file, int) and stat.S_ISFIFO(os.fstat(file).st_mode)
            if pipe or not set(mode) & set("wax+"):
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
_PLAN = {"recipe": "Q8_0", "imatrix": None, "parameters": {"base": "Q8_0"}}

STAGES: dict[str, tuple[Any, dict[str, Any], Callable[[Path], list[object]], dict[str, str]]] = {
    # its config, what its spec is made from, its arguments, its outputs
    "model.manifest": ({}, {}, lambda folder: ["--model", LLAMA], {"manifest": "m.tsv", "facts": "m.json"}),
    "recipe.plan": (
        _PLAN,
        {},
        lambda folder: ["--model", LLAMA, "--template", Path("recipes/preset.yaml.j2").absolute()],
        {"recipe": "r.yaml", "plan": "p.tsv", "report": "p.json"},
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


_AT_MOST = 3
"""How many writes of a job are tried; by hand, `WRITES=1000 pytest tests/faults/test_full_disk.py`."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A whole run of a tiny model, from the check to the card."""
    checkout = Checkout.build(tmp_path_factory.mktemp("built") / "a")
    kld = {"kld": {"corpus": "held-out", "chunks": 2, "context": 128}}
    bench = kld | {"perplexity": kld["kld"], "speed": {"prompt": 16, "generate": 4, "repetitions": 2}}
    fed = {"name": "fed", "template": "preset", "base": "Q4_K_S", "rounding": "gptq"}
    checkout.configure(lambda config: config.update(bench=bench, recipes=[fed]))
    checkout.run()
    return checkout


def _jobs(rule: str) -> list[tuple[str, list[Path]]]:
    """The command and the outputs of each job of a rule, from Snakemake's records in this folder."""
    outputs: dict[str, list[Path]] = {}
    for path in Path(".snakemake", "metadata").rglob("*"):
        if path.is_file() and (record := json.loads(path.read_bytes()))["rule"] == rule:
            output = base64.urlsafe_b64decode(path.name).decode()
            outputs.setdefault(record["shellcmd"], []).append(Path(output))
    return sorted(outputs.items())


def _content(path: Path) -> Any:
    """What must be the same in every run: in a report all but the seconds that something took."""
    if path.is_dir():
        return {file.name: _content(file) for file in path.iterdir() if not file.name.startswith(".")}
    return _plain(json.loads(path.read_bytes())) if path.suffix == ".json" else path.read_bytes()


def _plain(value: Any) -> Any:
    timed = ("seconds", "overhead", "speed", "tokens_per_second", "load", "runs")
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if not any(one in key for one in timed)}
    return [_plain(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "rule",
    [
        "check_source",
        "measure_imatrix",
        "measure_moments",
        "plan_types",
        "tabulate_memory",
        "quantize",
        "measure_divergence",
        "measure_perplexity",
        "write_lock",
        "write_card",
    ],
)
def test_a_full_disk_in_a_job(
    built: Checkout,
    rule: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The job's own command, with nothing in the store, at writes from its first to its last."""
    shutil.copytree(built.folder, tmp_path / "a", symlinks=True)
    monkeypatch.chdir(tmp_path / "a")
    command, outputs = _jobs(rule)[0]
    expected = {path: _content(path) for path in outputs}
    monkeypatch.setenv("QUANTMILL_STORE_MAX", str(1 << 30))
    monkeypatch.setenv("QUANTMILL_STORE_READ", "[]")
    monkeypatch.setenv("QUANTMILL_EVALUATIONS", '{"file": "config.yaml", "models": {}}')

    def run(room: int) -> tuple[int, int]:
        """The exit code, and how much was written."""
        for path in outputs:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / f"store-{room}"))
        words = [os.path.expandvars(word) for word in shlex.split(command)]
        stage = words[words.index("quantmill") + 1]
        disk = Disk(room)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [stage, *words[words.index(stage) + 1 :]])
            patch.delitem(sys.modules, f"quantmill.{stage}", raising=False)
            disk.fill(patch)
            try:
                runpy.run_module(f"quantmill.{stage}", run_name="__main__")
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        return code, disk.used

    code, used = run(10**9)
    assert code == 0
    assert {path: _content(path) for path in outputs} == expected
    capsys.readouterr()
    step = max(1, used // int(os.getenv("WRITES", str(_AT_MOST))))
    refused = 0
    for room in {*range(0, used, step), used - 1}:
        code, _ = run(room)
        printed = capsys.readouterr().err
        there = {path: _content(path) for path in outputs if path.exists()}
        assert there == {path: expected[path] for path in there}, room
        assert "Traceback" not in printed, (room, printed)
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code != 0), (room, printed)
        assert all("No space left on device" in line and "; " in line for line in errors)
        assert code != 0 or there.keys() == expected.keys()
        refused += code != 0
    assert refused
    assert run(10**9)[0] == 0
    assert {path: _content(path) for path in outputs} == expected


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
