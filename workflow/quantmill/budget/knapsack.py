"""The multiple-choice knapsack: one choice of each group, at the least total cost within a capacity.

Solved to the optimum by HiGHS. It works in floating point and may overshoot a
row by its tolerance, so the sizes are added up again in integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from quantmill.errors import QuantmillError

# Enough for any model tried. Unlike a time limit it is the same on every machine.
_MAX_NODES: Final = 100_000
_SCALE: Final = 1e4  # to which the objective and the capacity are scaled, against tolerances of 1e-9
_TOLERANCE: Final = 1e-9
_REPAIRS: Final = 8
_OPTIONS: Final[dict[str, bool | int | float]] = {
    "output_flag": False,
    "threads": 1,
    "random_seed": 0,
    "mip_max_nodes": _MAX_NODES,
    "mip_rel_gap": 0.0,
    "mip_abs_gap": _TOLERANCE,
    "mip_feasibility_tolerance": _TOLERANCE,
    "primal_feasibility_tolerance": _TOLERANCE,
    "dual_feasibility_tolerance": _TOLERANCE,
}


@dataclass(frozen=True)
class Solution:
    """`picks`: the index of the choice of each group; `bound`: no assignment costs less."""

    picks: tuple[int, ...]
    size: int
    cost: float
    bound: float
    nodes: int

    @property
    def gap(self) -> float:
        """How far the cost may be above the optimum, relative to the cost."""
        return (self.cost - self.bound) / abs(self.cost) if self.cost else self.cost - self.bound


def solve(sizes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], capacity: int) -> Solution:
    """The assignment of least cost whose sizes add up to at most `capacity`.

    `sizes[g][c]` and `costs[g][c]` are of choice c of group g. A larger choice
    may cost more, and costs may be negative. Of groups that are alike, earlier
    ones get the larger choices; of equal choices the first is taken.
    QuantmillError where even the smallest sizes do not fit.
    """
    useful = [undominated(*group) for group in zip(sizes, costs, strict=True)]
    smallest = sum(min(group) for group in sizes)
    if smallest > capacity:
        raise QuantmillError(f"{capacity} bytes are fewer than the {smallest} that are the least")
    useful_sizes = [[sizes[g][c] for c in choices] for g, choices in enumerate(useful)]
    useful_costs = [[costs[g][c] for c in choices] for g, choices in enumerate(useful)]
    if sum(group[-1] for group in useful_sizes) <= capacity:
        picks, bound, nodes = [len(choices) - 1 for choices in useful], None, 0
    else:
        picks, bound, nodes = _highs(useful_sizes, useful_costs, capacity)
    picks = _in_order(picks, useful_sizes, useful_costs)
    chosen = tuple(choices[pick] for choices, pick in zip(useful, picks, strict=True))
    cost = math.fsum(costs[g][c] for g, c in enumerate(chosen))
    return Solution(
        picks=chosen,
        size=sum(sizes[g][c] for g, c in enumerate(chosen)),
        cost=cost,
        bound=cost if bound is None else min(bound, cost),
        nodes=nodes,
    )


def undominated(sizes: Sequence[int], costs: Sequence[float]) -> list[int]:
    """The choices of a group that are the best at some capacity, smallest first.

    The others are dominated: another choice is no larger and costs no more.
    """
    useful: list[int] = []
    for choice in sorted(range(len(sizes)), key=lambda c: (sizes[c], costs[c], c)):
        if not useful or costs[choice] < costs[useful[-1]]:
            useful.append(choice)
    return useful


def _highs(sizes: list[list[int]], costs: list[list[float]], capacity: int) -> tuple[list[int], float, int]:
    """(picks, bound, nodes) where not every group can have its largest choice."""
    # What all choices of a group have in common is subtracted: the rest is scaled by what differs.
    least = [min(group) for group in sizes]
    best = [min(group) for group in costs]
    rows = np.array([g for g, group in enumerate(sizes) for _ in group], np.int32)
    weights = np.array([size - least[g] for g, group in enumerate(sizes) for size in group], np.float64)
    extra = np.array([cost - best[g] for g, group in enumerate(costs) for cost in group], np.float64)
    unit = extra[extra > 0].mean() if (extra > 0).any() else 1.0
    room, bound, nodes = capacity - sum(least), None, 0
    for _ in range(_REPAIRS):
        taken, low, visited = _run(rows, weights / max(room, 1) * _SCALE, extra / unit, len(sizes))
        bound = low * unit + math.fsum(best) if bound is None else bound
        nodes += visited
        starts = np.searchsorted(rows, np.arange(len(sizes)))
        picks = (taken - starts).tolist()
        over = sum(sizes[g][c] for g, c in enumerate(picks)) - capacity
        if over <= 0:
            return picks, bound, nodes
        room -= over
    raise QuantmillError(f"the solver overshoots {capacity} bytes again and again", cure="take another size")


def _run(
    rows: np.ndarray, weights: np.ndarray, costs: np.ndarray, groups: int
) -> tuple[np.ndarray, float, int]:
    """(the column taken of each group, bound of the cost, nodes); the weights fit `_SCALE`."""
    import highspy

    columns = len(rows)
    problem = highspy.HighsLp()
    problem.num_col_, problem.num_row_ = columns, groups + 1
    problem.col_cost_ = costs
    problem.col_lower_, problem.col_upper_ = np.zeros(columns), np.ones(columns)
    problem.row_lower_ = np.r_[np.ones(groups), -highspy.kHighsInf]
    problem.row_upper_ = np.r_[np.ones(groups), _SCALE]
    problem.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    problem.a_matrix_.start_ = np.arange(0, 2 * columns + 1, 2)
    problem.a_matrix_.index_ = np.column_stack([rows, np.full(columns, groups)]).ravel()
    problem.a_matrix_.value_ = np.column_stack([np.ones(columns), weights]).ravel()
    problem.integrality_ = [highspy.HighsVarType.kInteger] * columns
    solver = highspy.Highs()
    for option, value in _OPTIONS.items():
        solver.setOptionValue(option, value)
    solver.passModel(problem)
    solver.run()
    info = solver.getInfo()
    values = np.array(solver.getSolution().col_value)
    if (
        len(values) != columns
        or info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible
    ):
        status = solver.modelStatusToString(solver.getModelStatus())
        raise QuantmillError(f"HiGHS found no allocation ({status})", cure="take another size")
    # The largest value of each group; a group's rows stand together.
    order = np.lexsort((-values, rows))
    taken = order[np.searchsorted(rows[order], np.arange(groups))]
    return taken, float(info.mip_dual_bound), int(info.mip_node_count)


def _in_order(picks: list[int], sizes: list[list[int]], costs: list[list[float]]) -> list[int]:
    """The same picks, sorted among groups that are alike: the earlier group has the larger choice."""
    alike: dict[tuple, list[int]] = {}
    for g in range(len(picks)):
        alike.setdefault((tuple(sizes[g]), tuple(costs[g])), []).append(g)
    ordered = list(picks)
    for members in alike.values():
        for g, pick in zip(members, sorted((picks[g] for g in members), reverse=True), strict=True):
            ordered[g] = pick
    return ordered


def solver_name() -> str:
    """The solver and its version."""
    import highspy

    return f"HiGHS {highspy.Highs().version()}"
