"""The digests of sources: read side by side when the first is asked for, and reported where it takes long."""

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantmill.engine import library
from quantmill.errors import QuantmillError
from quantmill.flow import digests
from quantmill.flow.digests import Digests
from quantmill.flow.project import Project
from quantmill.flow.start import _requested
from quantmill.model.digests import Memo


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The files of each call that reads some."""
    calls: list[set[str]] = []
    real = Memo._read_all

    def counted(self: Memo, paths: list[Path], threads: int, done: Any) -> Any:
        calls.append({str(path) for path in paths})
        return real(self, paths, threads, done)

    monkeypatch.setattr(Memo, "_read_all", counted)
    return calls


def fresh(project: Project, folder: Path) -> Project:
    project.memo = Memo([folder / "notes"])
    return project


def test_all_sources_are_read_together(
    make: Callable[..., Project], reads: list[set[str]], tmp_path: Path
) -> None:
    project = fresh(make(), tmp_path)
    made = Digests(project, threads=2)
    assert reads == []
    made.files(project.source_files("local"))
    (first,) = reads
    assert {"model.gguf", "packages/models_of_a_test/model.gguf", "checkpoint/config.json"} <= {
        str(Path(path).absolute().relative_to(Path.cwd())) for path in first
    }
    made.files(project.source_files("packaged"))
    made.checkpoint("checkpoint")
    assert len(reads) == 1


def test_of_one_model_its_own_alone(
    make: Callable[..., Project], reads: list[set[str]], tmp_path: Path
) -> None:
    project = fresh(make(), tmp_path)
    Digests(project, models=lambda: ["local"]).files(project.source_files("local"))
    assert reads == [{"model.gguf"}]


def test_what_takes_long_is_said(
    make: Callable[..., Project],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    project = fresh(make(), tmp_path)
    Digests(project, models=list).files(project.source_files("local"))
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(digests, "_REPORTED_ABOVE", 1000)
    Digests(fresh(project, tmp_path / "other"), models=list).files(project.source_files("local"))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("hashing model.gguf: 0.0 of ")
    assert err.count("\n") == 2


@pytest.mark.parametrize(
    ("targets", "jobs", "expected"),
    [
        ([], [], ["local", "hub"]),
        (["cards"], [], ["local", "hub"]),
        (["results/hub/model.json"], [], ["hub"]),
        (["./results/hub/model.json", "results/local/check.json"], [], ["local", "hub"]),
        (["results/hub/model.json", "plans"], [], ["local", "hub"]),
        ([], ["a job"], []),
    ],
)
def test_the_models_of_a_run(targets: list[str], jobs: list[str], expected: list[str]) -> None:
    settings = SimpleNamespace(targets=targets, target_jobs=jobs)
    project: Any = SimpleNamespace(given=SimpleNamespace(models=["local", "hub"]), results=Path("results"))
    assert _requested(SimpleNamespace(dag_settings=settings), project) == expected


def test_a_node_with_another_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTMILL_ENGINE_MAINLINE", "")  # gone again after the test
    monkeypatch.delenv("QUANTMILL_ENGINE_MAINLINE")
    project: Any = SimpleNamespace(memo=SimpleNamespace(sha256=lambda path: f"of {path.name}"))
    submitted = Digests(project, local=False).engine()  # Snakemake's environment reaches its jobs
    assert Digests(project, local=False).engine() == submitted
    monkeypatch.setattr(library, "check", lambda name: None)
    assert Digests(project).engine() == submitted
    project.memo.sha256 = lambda path: f"another {path.name}"
    with pytest.raises(QuantmillError) as error:
        Digests(project).engine()
    assert str(error.value) == (
        f"engine mainline on {socket.gethostname()}: is another build than that of the machine that "
        "the job was submitted from; let all nodes use one environment, on a file system that they share"
    )
