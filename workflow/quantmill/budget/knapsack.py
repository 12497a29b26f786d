"""The multiple-choice knapsack: one choice of each group, at the least total cost within a capacity.

Solved to the optimum by HiGHS. It works in floating point and may overshoot a
row by its tolerance, so the sizes are added up again in integers. Beside their
sizes the choices may have other amounts, each with a limit of its own, such as the
time that they take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

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


class Limit(NamedTuple):
    """What else the choices add up to: `amounts[g][c]`, whole numbers, at most `most` together."""

    amounts: Sequence[Sequence[int]]
    most: int


def solve(
    sizes: Sequence[Sequence[int]],
    costs: Sequence[Sequence[float]],
    capacity: int,
    limits: Sequence[Limit] = (),
) -> Solution:
    """The assignment of least cost whose sizes add up to at most `capacity`, within all `limits`.

    `sizes[g][c]` and `costs[g][c]` are of choice c of group g. A larger choice
    may cost more, and costs may be negative. Of groups that are alike, earlier
    ones get the larger choices; of equal choices the first is taken.
    QuantmillError where even the smallest sizes do not fit, or the solver finds
    that no assignment is within the limits.
    """
    rows = [Limit(sizes, capacity), *limits]
    amounts = [row.amounts for row in rows]
    useful = [
        undominated(*group, *others)
        for group, *others in zip(zip(sizes, costs, strict=True), *amounts[1:], strict=True)
    ]
    smallest = sum(min(group) for group in sizes)
    if smallest > capacity:
        raise QuantmillError(f"{capacity} bytes are fewer than the {smallest} that are the least")
    if any(sum(map(min, limit.amounts)) > limit.most for limit in limits):
        raise QuantmillError("no choices are within the limits", cure="take another size")
    useful_costs = [[costs[g][c] for c in choices] for g, choices in enumerate(useful)]
    useful_rows = [
        Limit([[row.amounts[g][c] for c in choices] for g, choices in enumerate(useful)], row.most)
        for row in rows
    ]
    picks = [min(range(len(group)), key=group.__getitem__) for group in useful_costs]
    bound, nodes = None, 0
    if any(_over(row, picks) > 0 for row in useful_rows):
        picks, bound, nodes = _highs(useful_rows, useful_costs)
    picks = _in_order(picks, [row.amounts for row in useful_rows], useful_costs)
    chosen = tuple(choices[pick] for choices, pick in zip(useful, picks, strict=True))
    cost = math.fsum(costs[g][c] for g, c in enumerate(chosen))
    return Solution(
        picks=chosen,
        size=sum(sizes[g][c] for g, c in enumerate(chosen)),
        cost=cost,
        bound=cost if bound is None else min(bound, cost),
        nodes=nodes,
    )


def undominated(sizes: Sequence[int], costs: Sequence[float], *amounts: Sequence[int]) -> list[int]:
    """The choices of a group that are the best at some capacity and some limits, smallest first.

    The others are dominated: another choice is no larger, costs no more, and has no more of any amount.
    """
    useful: list[int] = []
    for choice in sorted(range(len(sizes)), key=lambda c: (sizes[c], costs[c], c)):
        if not any(
            costs[other] <= costs[choice] and all(amount[other] <= amount[choice] for amount in amounts)
            for other in useful
        ):
            useful.append(choice)
    return useful


def _over(row: Limit, picks: Sequence[int]) -> int:
    """How far the picks are above a limit; negative where they are below."""
    return sum(row.amounts[g][c] for g, c in enumerate(picks)) - row.most


def _highs(rows: Sequence[Limit], costs: list[list[float]]) -> tuple[list[int], float, int]:
    """(picks, bound, nodes) where not every group can have its best choice."""
    # What all choices of a group have in common is subtracted: the rest is scaled by what differs.
    best = [min(group) for group in costs]
    group_of = np.array([g for g, group in enumerate(costs) for _ in group], np.int32)
    extra = np.array([cost - best[g] for g, group in enumerate(costs) for cost in group], np.float64)
    unit = extra[extra > 0].mean() if (extra > 0).any() else 1.0
    weights = np.array([[a - min(group) for group in row.amounts for a in group] for row in rows], np.float64)
    rooms = [row.most - sum(min(group) for group in row.amounts) for row in rows]
    bound, nodes = None, 0
    for _ in range(_REPAIRS):
        scaled = weights / np.maximum(rooms, 1)[:, None] * _SCALE
        taken, low, visited = _run(group_of, scaled, extra / unit, len(costs))
        bound = low * unit + math.fsum(best) if bound is None else bound
        nodes += visited
        starts = np.searchsorted(group_of, np.arange(len(costs)))
        picks = (taken - starts).tolist()
        over = [max(0, _over(row, picks)) for row in rows]
        if not any(over):
            return picks, bound, nodes
        rooms = [room - more for room, more in zip(rooms, over, strict=True)]
    what = f"the solver overshoots {rows[0].most} bytes again and again"
    raise QuantmillError(what, cure="take another size")


def _run(
    group_of: np.ndarray, weights: np.ndarray, costs: np.ndarray, groups: int
) -> tuple[np.ndarray, float, int]:
    """(the column taken of each group, bound of the cost, nodes); `weights` [limits, columns] fit _SCALE."""
    import highspy

    columns, rows = len(group_of), len(weights)
    problem = highspy.HighsLp()
    problem.num_col_, problem.num_row_ = columns, groups + rows
    problem.col_cost_ = costs
    problem.col_lower_, problem.col_upper_ = np.zeros(columns), np.ones(columns)
    problem.row_lower_ = np.r_[np.ones(groups), np.full(rows, -highspy.kHighsInf)]
    problem.row_upper_ = np.r_[np.ones(groups), np.full(rows, _SCALE)]
    problem.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    problem.a_matrix_.start_ = np.arange(0, (1 + rows) * columns + 1, 1 + rows)
    of_rows = [np.full(columns, groups + row) for row in range(rows)]
    problem.a_matrix_.index_ = np.column_stack([group_of, *of_rows]).ravel()
    problem.a_matrix_.value_ = np.column_stack([np.ones(columns), *weights]).ravel()
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
    # The largest value of each group; a group's columns stand together.
    order = np.lexsort((-values, group_of))
    taken = order[np.searchsorted(group_of[order], np.arange(groups))]
    return taken, float(info.mip_dual_bound), int(info.mip_node_count)


def _in_order(
    picks: list[int], amounts: Sequence[Sequence[Sequence[int]]], costs: list[list[float]]
) -> list[int]:
    """The same picks, sorted among groups that are alike: the earlier group has the larger choice."""
    alike: dict[tuple, list[int]] = {}
    for g in range(len(picks)):
        key = (tuple(costs[g]), *(tuple(of_row[g]) for of_row in amounts))
        alike.setdefault(key, []).append(g)
    ordered = list(picks)
    for members in alike.values():
        for g, pick in zip(members, sorted((picks[g] for g in members), reverse=True), strict=True):
            ordered[g] = pick
    return ordered


def solver_name() -> str:
    """The solver and its version."""
    import highspy

    return f"HiGHS {highspy.Highs().version()}"
