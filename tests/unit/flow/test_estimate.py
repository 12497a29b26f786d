"""The table of hours, memory and disk: what is due, what earlier runs tell of it, how it reads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models import DRAFTER
from quantmill import machine
from quantmill.flow import estimate
from quantmill.flow.estimate import Estimate, Rates, Row
from quantmill.flow.inputs import Inputs
from quantmill.flow.paths import Paths
from quantmill.flow.project import Project
from quantmill.flow.targets import Targets
from quantmill.flow.work import FILES, OTHER, Job, Work
from quantmill.formats.ggufio import read_header
from quantmill.measures import MEASURES

GIB = 1 << 30
NONE = Rates({}, {})


@pytest.fixture
def results(make: Callable[..., Project], tmp_path: Path) -> Targets:
    """The targets of a project whose results lie in a folder of the test."""
    project = make(("results", str(tmp_path / "results")))
    return Targets(Inputs(Paths(project), lambda files: files))


def work_of(targets: Targets, cores: int = 2) -> Work:
    return Work(targets.paths, cores)


def plan(targets: Targets, recipe: str, **types: tuple[int, int]) -> None:
    """A plan's report with the (parameters, bytes) of its types."""
    path = Path(targets.paths.of("local", f"plans/{recipe}.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"type": name, "parameters": count, "bytes": size} for name, (count, size) in types.items()]
    path.write_text(json.dumps({"by_type": rows}), encoding="utf-8")


def benchmark(targets: Targets, name: str, seconds: float, megabytes: float = 100) -> None:
    path = Path(targets.paths.of("local", f"benchmarks/{name}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\tmax_rss\tmax_vms\n{seconds}\t0:00:10\t{megabytes}\t-\n", encoding="utf-8")


def test_every_measure_has_a_rule() -> None:
    assert estimate._RULES.keys() == MEASURES.keys()


def test_what_is_missing_is_due(results: Targets) -> None:
    due = estimate.of_missing(results)
    expected = {
        *{Job("quantize", "local", recipe) for recipe in results.project.config.recipes_of("local")},
        *{Job("measure_divergence", "local", row) for row in results.project.rows("local")},
        *{Job("evaluate_code", "local", row) for row in results.project.rows("local")},
        *{
            Job(rule, "local")
            for rule in ("measure_imatrix", "measure_sensitivity", "list_tensors", "write_card")
        },
        Job("build_corpus", "local", "held-out"),
    }
    assert expected <= set(due)
    assert len(due) == len(set(due))
    for file in results.results("local"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    assert {job.model for job in estimate.of_missing(results)} == {job.model for job in due} - {"local"}


def test_snakemakes_jobs() -> None:
    def job(rule: str, mem_mb: object, **wildcards: str) -> Any:
        resources = {"mem_mb": mem_mb}
        return SimpleNamespace(rule=SimpleNamespace(name=rule), wildcards=wildcards, resources=resources)

    jobs = [
        job("all", 0),
        job("measure_speed", 2000, model="m", row="Q8_0"),
        job("check_source", "<TBD>", model="m"),
    ]
    assert estimate.of_dag(jobs) == [
        Job("measure_speed", "m", "Q8_0", 2_000_000_000),
        Job("check_source", "m"),
    ]


def test_files_share_their_tensors(results: Targets) -> None:
    """No type takes more than the whole model once."""
    work = work_of(results)
    whole = sum(tensor.elements for tensor in read_header(Path("model.gguf")).tensors)
    plan(results, "Q8_0", iq2_xs=(whole, whole), f32=(1, 4))
    names = [*results.project.config.recipes_of("local")][:2]
    plan(results, names[0], iq2_xs=(whole, whole))
    plan(results, names[1], iq2_xs=(whole, whole))
    one, two = (work.files([Job("quantize", "local", name) for name in names[:count]]) for count in (1, 2))
    assert one[1] == two[1] == whole
    assert two[0] - one[0] == pytest.approx(work.start, rel=0.01)
    assert work.file_bytes(Job("quantize", "local", names[0])) == whole


def test_more_cores_and_fewer_chunks_take_less(
    make: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(cores: int, *changes: tuple[str, object]) -> float:
        project = make(*changes)
        found = Work(Paths(project), cores).seconds(Job("measure_divergence", "local", "source"))
        assert found is not None
        return found - Work.start

    base = seconds(1)
    assert seconds(2) == pytest.approx(base / 2)
    assert seconds(1, ("bench.kld.chunks", 30)) == pytest.approx(base * 10)


def test_a_draft_head_takes_another_pass(make: Callable[..., Project]) -> None:
    def seconds(mtp: bool) -> float:
        work = Work(Paths(make(("imatrix.mtp", mtp))), 1)
        found = work.seconds(Job("measure_imatrix", "local"))
        assert found is not None
        return found - Work.start

    assert seconds(True) == pytest.approx(seconds(False) * 2.2 / 1.2)


def test_each_draft_length_is_served_anew(make: Callable[..., Project]) -> None:
    def seconds(rule: str, *changes: tuple[str, object]) -> float:
        work = Work(Paths(make(("models.drafter", DRAFTER), *changes)), 1)
        found = work.seconds(Job(rule, "drafter", "source"))
        assert found is not None
        return found - Work.start

    path = "models.drafter.bench.served.draft"
    alone = seconds("measure_served", (path, []))
    assert alone > 0 and seconds("measure_served", (path, [1, 2, 3])) == pytest.approx(4 * alone)
    drafted = seconds("measure_draft")
    assert drafted > 0
    assert seconds("measure_draft", ("models.drafter.bench.draft.chunks", 8)) == pytest.approx(2 * drafted)


def test_a_perplexity_of_the_same_chunks_takes_no_time(results: Targets) -> None:
    work = work_of(results)
    assert work.seconds(Job("measure_perplexity", "local", "source")) == work.start


def test_what_was_read_with_the_workflow_is_not_read_again(results: Targets) -> None:
    assert work_of(results).seconds(Job("list_tensors", "local")) == Work.start


def test_each_rule_has_a_time(results: Targets) -> None:
    work = work_of(results)
    for job in estimate.of_missing(results):
        if job.model == "local":
            seconds = work.seconds(job)
            assert seconds is not None, job
            assert seconds >= work.start
    assert (work.seconds(Job("measure_sensitivity", "local")) or 0) > 60 * results.project.probes(
        "local"
    ).minutes


def test_a_source_that_is_yet_to_be_fetched_gives_no_time(results: Targets) -> None:
    work = work_of(results)
    job = Job("quantize", "hub", "Q8_0")
    assert work.size("hub") is None
    assert work.seconds(job) is None
    (row, *_) = estimate.rows([Job("measure_speed", "hub", "Q8_0")], work, NONE)
    assert row.seconds is None
    assert "?" in estimate.lines([row], GIB)[1]
    assert "> 0 s" in estimate.lines([row], GIB)[2]


def test_earlier_runs_correct_the_figures(results: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times what is expected; a job that found its work in the store, or a torn note tells nothing."""
    monkeypatch.setattr(Work, "seconds", lambda self, job: 13.0)
    monkeypatch.setattr(Work, "taken", lambda self, job: 13.0)
    for name, seconds in (("Q8_0", 33.0), ("source", 33.0), ("found", 3.5)):
        benchmark(results, f"kld/{name}.tsv", seconds, 512)
    Path(results.paths.of("local", "benchmarks/kld/torn.tsv")).write_text("s\n", encoding="utf-8")
    work = work_of(results)
    rates = estimate.learn(work)
    assert rates.factors == {"KL divergence": pytest.approx(3)}
    assert rates.memory == {("local", "KL divergence"): 512 * 2**20}
    jobs = [Job("measure_divergence", "local", "Q8_0", 9 * GIB), Job("measure_speed", "local", "Q8_0", GIB)]
    kld, speed = estimate.rows(jobs, work, rates)
    assert kld == ("KL divergence", 1, pytest.approx(33), False, 512 * 2**20, 0)
    assert speed == ("speed", 1, 13.0, True, GIB, 0)


def test_a_finished_job_is_judged_by_what_it_evaluated(results: Targets) -> None:
    """Not by what the config asks for now."""
    work = work_of(results)
    job = Job("measure_divergence", "local", "Q8_0")
    assert work.taken(job) is None  # no report
    report = Path(results.paths.of("local", "bench/Q8_0/kld.json"))
    report.parent.mkdir(parents=True)
    report.write_text('{"chunks": 30, "context": 128}', encoding="utf-8")
    now = work.seconds(job)
    then = work.taken(job)
    assert now is not None
    assert then is not None
    assert then - work.start == pytest.approx(10 * (now - work.start))


def test_what_took_no_time_tells_nothing_of_large_models(results: Targets) -> None:
    benchmark(results, "kld/Q8_0.tsv", 500)
    assert (
        estimate.learn(work_of(results)).factors == {}
    )  # the model of the tests takes a fraction of a second


def test_the_table() -> None:
    table = [
        Row("importance matrix", 1, 720, False, 6_500_000_000, 0),
        Row(FILES, 25, 2460, True, GIB // 2, 38 * GIB),
        Row("units in the store", 0, None, False, 0, 2 * GIB),
        Row(OTHER, 50, 60, False, 0, 0),
    ]
    assert estimate.lines(table, 80 * GIB) == [
        "to make                    jobs         time     memory        disk",
        "importance matrix             1       12 min   6.05 GiB",
        "files                        25      ~41 min  512.0 MiB   38.00 GiB",
        "units in the store                                         2.00 GiB",
        "plans, cards and the like    50         60 s",
        "total                        76      ~54 min              40.00 GiB  (free: 80.00 GiB)",
        "~: rough, from no earlier run of this project",
    ]


def test_what_does_not_fit_is_said() -> None:
    table = [Row(FILES, 2, 1, True, 0, 38 * GIB), Row("units in the store", 0, None, False, 0, 50 * GIB)]
    jobs = [Job("measure_imatrix", "big", "", 60 * GIB)]
    memory = machine.Memory(24 * GIB, 20 * GIB, "this machine")
    assert estimate.warnings(table, jobs, 40 * GIB, memory)[:-1] == []
    assert estimate.warnings(table, jobs, 30 * GIB, memory) == [
        "warning: the files take 38.00 GiB, and the disk of the results has 30.00 GiB free;"
        " free some space, or make fewer recipes at a time",
        "warning: measure_imatrix of big asks for 60.00 GiB of memory, this machine has 24.00 GiB;"
        " use a larger machine, or a smaller source",
    ]


def workflow(targets: list[str], quiet: set[str], *, dryrun: bool, jobs: list[Any]) -> Any:
    """What the estimate asks of Snakemake."""
    return SimpleNamespace(
        dag=SimpleNamespace(needrun_jobs=lambda exclude_finished: jobs),
        dag_settings=SimpleNamespace(targets=targets),
        output_settings=SimpleNamespace(quiet=[SimpleNamespace(name=name) for name in quiet]),
        dryrun=dryrun,
        executor_plugin="local",
    )


def test_when_it_is_printed(results: Targets, capsys: pytest.CaptureFixture[str]) -> None:
    speed = SimpleNamespace(
        rule=SimpleNamespace(name="measure_speed"),
        wildcards={"model": "local", "row": "source"},
        resources={"mem_mb": 2000},
    )
    card = SimpleNamespace(
        rule=SimpleNamespace(name="write_card"), wildcards={"model": "local"}, resources={}
    )

    def printed(method: str, targets: list[str], quiet: set[str], jobs: list[Any], *, dryrun: bool) -> bool:
        run = Estimate(results, 2, workflow(targets, quiet, dryrun=dryrun, jobs=jobs))
        getattr(run, method)()
        out, err = capsys.readouterr()
        assert out == ""
        return "to make" in err

    assert printed("of_run", [], set(), [speed], dryrun=False)
    assert not printed("of_run", [], set(), [card], dryrun=False)
    assert not printed("of_run", [], {"ALL"}, [speed], dryrun=False)
    assert printed("at_exit", [], {"RULES"}, [speed], dryrun=True)
    assert not printed("at_exit", [], set(), [speed], dryrun=False)
    assert printed("of_plans", ["plans"], set(), [], dryrun=False)
    assert not printed("of_plans", ["all"], set(), [], dryrun=False)
    assert printed("at_exit", ["plans"], set(), [], dryrun=False)  # all are there, and no hook is called
    assert not printed("at_exit", ["plans"], set(), [card], dryrun=False)  # they were made, or failed


def test_an_error_in_it_stops_nothing(results: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: 1 / 0)
    for method in ("of_run", "of_plans", "at_exit"):
        getattr(Estimate(results, 2, None), method)()
    run = Estimate(results, 2, workflow(["plans"], set(), dryrun=False, jobs=[]))
    run.of_plans()
