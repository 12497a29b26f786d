"""What jobs ask for: threads by a setting, memory and time by sizes and earlier runs, more each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantmill import machine
from quantmill.flow.estimate import Rates
from quantmill.flow.paths import Paths
from quantmill.flow.project import Project
from quantmill.flow.resources import NODE_THREADS, Resources, cores_of, grown


class Wildcards(SimpleNamespace):
    """As Snakemake's."""

    def items(self) -> Any:
        """Names and values, in the order of the rule."""
        return vars(self).items()


SOURCE, RECIPE = Wildcards(model="local", row="source"), Wildcards(model="local", recipe="plain")


def workflow(*, cores: int | None = 2, most: int | None = None, local: bool = True, gpu: int = 0) -> Any:
    settings = SimpleNamespace(
        cores=cores, nodes=None if local else 20, max_threads=most, resources={"gpu": gpu} if gpu else {}
    )
    noted: dict[str, int] = {}
    return SimpleNamespace(resource_settings=settings, register_resource=noted.__setitem__, noted=noted)


def asked(resource: Callable[..., int] | None) -> Callable[..., int]:
    assert resource is not None
    return resource


@pytest.fixture
def project(make: Callable[..., Project]) -> Project:
    return make()


@pytest.fixture
def resources(project: Project, monkeypatch: pytest.MonkeyPatch) -> Resources:
    made = Resources(project, Paths(project), workflow(local=False))
    monkeypatch.setattr(Resources, "rates", lambda self: Rates({}, {}))
    return made


def test_threads_are_this_machines_where_the_jobs_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 3)
    run = workflow(cores=64)
    assert cores_of(run) == 3
    assert run.noted == {"_cores": 3}


@pytest.mark.parametrize("cores", [None, 64])
@pytest.mark.parametrize(("most", "expected"), [(None, NODE_THREADS), (4, 4)])
def test_threads_on_a_cluster_are_a_setting_and_not_the_submitters(
    cores: int | None, most: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 3)
    assert cores_of(workflow(cores=cores, most=most, local=False)) == expected


def test_a_node_gives_a_job_what_slurm_allotted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(machine, "_cgroups", lambda _: iter(()))
    assert machine.cores() == 64
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert machine.cores() == 2


@pytest.mark.parametrize(("attempt", "expected"), [(1, 1000), (2, 1500), (3, 2000)])
def test_an_attempt_asks_for_half_as_much_more(attempt: int, expected: int) -> None:
    assert grown(1000, attempt) == expected


def test_memory_follows_from_the_source(resources: Resources, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 3_000_000)
    ask = resources.memory(1.5, 1000, lambda model: [tmp_path / "one", str(tmp_path / "yet to be made")])
    assert ask(SOURCE, 1, "measure_divergence") == 1005
    assert ask(SOURCE, 2, "measure_divergence") == 1507


def test_memory_is_what_an_earlier_run_had(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates({}, {("local", "KL divergence"): 4_000_000_000})
    monkeypatch.setattr(Resources, "rates", lambda self: rates)
    ask = resources.memory(1.0, 3000)
    assert ask(SOURCE, 1, "measure_divergence") == 5000
    assert 3000 < ask(SOURCE, 1, "measure_perplexity") < 3100


def test_feeding_errors_back_asks_for_more_memory(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = resources.quantize_memory
    assert ask(RECIPE, 1, "quantize") in range(1500, 1510)
    monkeypatch.setattr(resources.project, "fed_back", lambda model, recipe: True)
    assert ask(RECIPE, 1, "quantize") in range(8000, 8010)


def test_time_follows_from_the_work(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = asked(resources.runtime)
    assert ask(SOURCE, 1, "measure_divergence") == 10
    assert ask(SOURCE, 3, "measure_divergence") == 20
    monkeypatch.setattr(resources.work, "seconds", lambda job: 3600.0)
    assert ask(SOURCE, 1, "measure_divergence") == 180
    monkeypatch.setattr(Resources, "rates", lambda self: Rates({"KL divergence": 2.0}, {}))
    assert ask(SOURCE, 1, "measure_divergence") == 360


def test_a_shard_of_the_sensitivity_has_the_time_for_all(make: Callable[..., Project]) -> None:
    """The others may run later, or one after the other."""
    project = make(("shards", 4))
    ask = asked(Resources(project, Paths(project), workflow(local=False)).runtime)
    model = Wildcards(model="local", shard="0of4")
    whole = ask(model, 1, "measure_sensitivity")
    assert ask(model, 1, "shard_sensitivity") == whole > 10
    assert ask(model, 1, "shard_imatrix") == 10


def test_time_of_what_is_not_known_yet(resources: Resources) -> None:
    wildcards = Wildcards(model="hub", row="source")
    assert asked(resources.runtime)(wildcards, 1, "measure_divergence") == 240


def test_disk_is_the_file_or_the_source(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resources.disk(RECIPE, "quantize") == 1000
    monkeypatch.setattr(resources.work, "file_bytes", lambda job: 5_500_000_001)
    assert resources.disk(RECIPE, "quantize") == 5501


def test_nothing_ends_a_job_here(project: Project) -> None:
    assert Resources(project, Paths(project), workflow()).runtime is None


def test_gpus_share_the_cores(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    of_two = Resources(project, Paths(project), workflow(cores=8, gpu=2))
    assert of_two.evaluation_cores(SOURCE) == 8
    monkeypatch.setattr(of_two, "gpus", lambda wildcards: 1)
    assert of_two.evaluation_cores(SOURCE) == 4
