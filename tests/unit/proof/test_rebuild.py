"""Which tensors a sample has."""

from __future__ import annotations

import pytest

from quantmill.proof.rebuild import SAMPLE, sample
from quantmill.quantize.kernels import Task

TYPES = ("f32", "q4_K", "q6_K")


def todo(count: int, types: tuple[str, ...] = TYPES) -> list[Task]:
    kinds = [types[number % len(types)] for number in range(count)]
    return [Task(f"blk.{i}.x", "", "f16", kind, (32,), None) for i, kind in enumerate(kinds)]


@pytest.mark.parametrize("count", [1, 5, 100])
def test_a_sample_has_each_type_and_is_always_the_same(count: int) -> None:
    tasks = todo(count)
    chosen = sample(tasks, "a file")
    assert len(chosen) == min(count, SAMPLE)
    assert {task.type for task in tasks if task.name in chosen} == {task.type for task in tasks}
    assert sample(tasks[::-1], "a file") == chosen
    assert count < 100 or sample(tasks, "another") != chosen


def test_more_types_than_a_sample_has_are_all_in_it() -> None:
    types = tuple(f"type {number}" for number in range(2 * SAMPLE))
    assert len(sample(todo(100, types), "a file")) == 2 * SAMPLE
