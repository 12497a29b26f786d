"""What is evaluated, and when again: code that is generated, tasks of lm-eval."""

import os
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT, Checkout

CODE = {"evaluate_code source", "evaluate_code Q8_0"}
TASKS = {"evaluate_tasks source", "evaluate_tasks Q8_0"}
CARD = {"write_card"}
REST = {
    "check_source",
    "list_tensors",
    "plan_types Q8_0",
    "tabulate_memory",
    "quantize Q8_0",
    "check_file Q8_0",
    "write_lock",
}
HUMANEVAL = {"problems": "problems.jsonl", "max_tokens": 4, "limit": 2, "accept_unsandboxed": True}
TASK = {"names": ["everyday"], "include": "tasks", "limit": 2, "context": 256}


def due(checkout: Checkout) -> set[str]:
    """The jobs that are due; a card is one, whatever it draws."""
    return {"write_card" if job.startswith("write_card") else job for job in checkout.due()}


def configure(checkout: Checkout, **bench: Any) -> None:
    """One recipe, and of the bench what is given alone."""
    checkout.configure(lambda c: c.update(recipes=["Q8_0"], imatrix=None, sensitivity=None, bench=bench))


def code(**changes: Any) -> Callable[[Checkout], None]:
    return lambda checkout: configure(checkout, humaneval=HUMANEVAL | changes)


def touch(checkout: Checkout) -> None:
    now = time.time()
    for path in (checkout.folder / "problems.jsonl", checkout.folder / "tiny-llama.gguf"):
        os.utime(path, (now, now))


def append(file: str, text: str = "\n") -> Callable[[Checkout], None]:
    def change(checkout: Checkout) -> None:
        path = checkout.folder / file
        path.write_text(path.read_text("utf-8") + text, encoding="utf-8")

    return change


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with problems, tasks and a config of both."""
    checkout = Checkout.build(tmp_path_factory.mktemp("evaluate") / "checkout")
    shutil.copy2(ROOT / "tests" / "data" / "problems.jsonl", checkout.folder)
    shutil.copytree(ROOT / "examples" / "tasks", checkout.folder / "tasks")
    return checkout


def delete(name: str) -> Callable[[Checkout], None]:
    return lambda checkout: checkout.result(name).unlink()


CASES: dict[str, tuple[Callable[[Checkout], Any], set[str]]] = {
    "touched files": (touch, set()),
    "time for the tests": (code(seconds=5.0), CODE | CARD),
    "another problem": (append("problems.jsonl"), CODE | CARD),
    "deleted samples": (delete("bench/Q8_0/humaneval.jsonl"), {"evaluate_code Q8_0"} | CARD),
}


def test_code_is_evaluated_once_and_again_only_when_it_must(checkout: Checkout, tmp_path: Path) -> None:
    configure(checkout, humaneval=HUMANEVAL)
    assert due(checkout) == REST | CODE | CARD
    checkout.run()
    samples = checkout.result("bench/Q8_0/humaneval.jsonl").read_text("utf-8")
    assert samples.count("\n") == 2 and checkout.result("bench/source/humaneval.json").is_file()
    for number, (case, (change, expected)) in enumerate(CASES.items()):
        copy = checkout.copy(tmp_path / f"copy {number}")
        change(copy)
        assert due(copy) == expected, case
        if case == "time for the tests":  # the answers are kept; their tests alone are run again
            copy.run()
            assert due(copy) == set()
            log = copy.result("logs/humaneval/Q8_0.log").read_text("utf-8")
            assert log.rstrip().endswith("0 answers generated, 2 reused")


def test_bad_problems_are_refused_when_the_config_is_read(checkout: Checkout, tmp_path: Path) -> None:
    configure(checkout, humaneval=HUMANEVAL)
    copy = checkout.copy(tmp_path / "copy")
    append("problems.jsonl", '{"task_id": "x"}\n')(copy)
    done = copy.snakemake("-n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: problems.jsonl: line 4: no field prompt; a problem has task_id, prompt, entry_point, "
        "canonical_solution, test, all of them text"
    )


def test_tasks_without_lm_eval_are_refused_in_one_line(checkout: Checkout) -> None:
    if find_spec("lm_eval") is not None:
        pytest.skip("lm-eval is installed")
    configure(checkout, tasks=TASK)
    done = checkout.snakemake("-n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: config.yaml: bench.tasks: no package lm-eval is installed; run `make evals`"
    )


def test_tasks_are_made_again_when_they_must(checkout: Checkout, tmp_path: Path) -> None:
    if find_spec("lm_eval") is None:
        pytest.skip("no lm-eval")
    configure(checkout, tasks=TASK)
    assert due(checkout) - REST == TASKS | CARD
    checkout.run()
    cases: dict[str, tuple[Callable[[Checkout], Any], set[str]]] = {
        "nothing": (lambda h: None, set()),
        "another limit": (lambda h: configure(h, tasks=TASK | {"limit": 3}), TASKS | CARD),
        "another question": (append("tasks/everyday.jsonl"), TASKS | CARD),
        "a deleted report": (delete("bench/Q8_0/tasks.json"), {"evaluate_tasks Q8_0"} | CARD),
    }
    for number, (case, (change, expected)) in enumerate(cases.items()):
        copy = checkout.copy(tmp_path / f"copy {number}")
        change(copy)
        assert due(copy) == expected, case
