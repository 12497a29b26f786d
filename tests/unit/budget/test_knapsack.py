"""The knapsack against every assignment there is, and what must not depend on chance."""

import itertools
import random

import numpy as np
import pytest

from quantmill.budget import knapsack
from quantmill.budget.knapsack import solve, undominated
from quantmill.errors import QuantmillError


def problem(seed: int) -> tuple[list[list[int]], list[list[float]], int]:
    """A few groups whose larger choices may cost more, or less than nothing."""
    draw = random.Random(seed)
    groups = draw.randint(1, 6)
    counts = [draw.randint(1, 5) for _ in range(groups)]
    sizes = [[32 * draw.randint(1, 40) for _ in range(n)] for n in counts]
    costs = [[draw.choice([0.0, draw.gauss(0.5, 0.4), draw.random() ** 8]) for _ in range(n)] for n in counts]
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    return sizes, costs, draw.randint(least, most)


def best(sizes: list[list[int]], costs: list[list[float]], capacity: int) -> float:
    """The least cost of all assignments that fit."""
    every = itertools.product(*(range(len(group)) for group in sizes))
    fitting = (
        sum(d[c] for d, c in zip(costs, chosen, strict=True))
        for chosen in every
        if sum(s[c] for s, c in zip(sizes, chosen, strict=True)) <= capacity
    )
    return min(fitting)


@pytest.mark.parametrize("seed", range(60))
def test_no_assignment_is_better(seed: int) -> None:
    sizes, costs, capacity = problem(seed)
    solution = solve(sizes, costs, capacity)
    assert solution.size == sum(group[c] for group, c in zip(sizes, solution.picks, strict=True)) <= capacity
    assert solution.cost == pytest.approx(best(sizes, costs, capacity), rel=1e-9, abs=1e-12)
    assert solution.bound <= solution.cost
    assert solution.gap < 1e-9


def test_large_sizes_are_added_up_in_integers() -> None:
    """A capacity of 2^40 bytes, missed by one byte, is missed: floating point would not see it."""
    tera = 1 << 40
    sizes = [[tera // 2, tera // 2 + 1], [tera // 4, tera // 2]]
    assert solve(sizes, [[1.0, 0.5], [1.0, 0.4]], tera).picks == (0, 1)
    assert solve(sizes, [[1.0, 0.5], [1.0, 0.4]], tera + 1).picks == (1, 1)


def test_groups_that_are_alike_are_filled_in_order() -> None:
    sizes, costs = [[32, 64]] * 5, [[2.0, 1.0]] * 5
    assert solve(sizes, costs, 32 * 8).picks == (1, 1, 1, 0, 0)


def test_among_equal_choices_the_first_is_taken() -> None:
    assert solve([[32, 32, 32]], [[1.0, 1.0, 1.0]], 100).picks == (0,)
    assert undominated([64, 32, 32, 96], [1.0, 1.0, 1.0, 0.5]) == [1, 3]


def test_the_same_input_gives_the_same_picks() -> None:
    draw = random.Random(7)
    sizes = [[64 * draw.randint(1, 99) for _ in range(6)] for _ in range(60)]
    costs = [[round(draw.random(), 2) for _ in range(6)] for _ in range(60)]
    capacity = sum(map(min, sizes)) * 2
    assert len({solve(sizes, costs, capacity).picks for _ in range(3)}) == 1


def test_a_larger_choice_that_costs_more_is_never_taken() -> None:
    assert solve([[32, 64, 96]], [[0.3, 0.5, 0.2]], 64).picks == (0,)


def test_a_cost_of_noise_may_be_negative() -> None:
    solution = solve([[32, 64], [32, 64]], [[-1e-6, -2e-6], [1e-3, 1e-4]], 96)
    assert solution.picks == (0, 1)
    assert solution.cost == pytest.approx(9.9e-5)


def test_the_least_must_fit() -> None:
    with pytest.raises(QuantmillError, match="fewer than the 96"):
        solve([[32, 64], [64]], [[1.0, 0.0], [0.0]], 95)


def test_of_one_size_the_one_of_least_cost_is_kept() -> None:
    assert undominated([32, 32, 64], [2.0, 1.0, 1.5]) == [1]


class Solver:
    """The solver with its answers changed: `weights` scales its weights, `low` lowers its bound."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, weights: float = 1.0, low: float = 0.0) -> None:
        self.calls, self._run = 0, knapsack._run
        self.weights, self.low = weights, low
        monkeypatch.setattr(knapsack, "_run", self)

    def __call__(
        self, rows: np.ndarray, weights: np.ndarray, costs: np.ndarray, groups: int
    ) -> tuple[np.ndarray, float, int]:
        self.calls += 1
        taken, bound, nodes = self._run(rows, weights * self.weights, costs, groups)
        return taken, bound - self.low, nodes


def test_a_solver_that_overshoots_is_asked_again_with_less_room(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, costs = [[32, 64, 96], [32, 64, 96]], [[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]
    solver = Solver(monkeypatch, weights=0.6)
    solution = solve(sizes, costs, 128)
    assert solver.calls > 1
    assert solution.size <= 128 and solution.bound <= solution.cost
    monkeypatch.setattr(solver, "weights", 0.0)  # as if nothing had a size
    with pytest.raises(QuantmillError, match="overshoots 128 bytes again and again; take another size"):
        solve(sizes, costs, 128)


def test_the_bound_is_the_solvers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, costs = [[32, 64, 96], [32, 64, 96]], [[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]
    assert solve(sizes, costs, 128).gap == pytest.approx(0.0, abs=1e-9)
    Solver(monkeypatch, low=0.1)
    solution = solve(sizes, costs, 128)
    assert solution.cost == 2.0 and solution.bound < 1.95
    assert solution.gap == pytest.approx((solution.cost - solution.bound) / solution.cost)
