"""The multiple-choice knapsack: of each group one choice, the least damage that fits a capacity.

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

# Enough for any model tried, and other than a time limit the same on every machine.
_MAX_NODES: Final = 100_000
_SCALE: Final = 1e4  # what the objective and the capacity are scaled to, against tolerances of 1e-9
_TOLERANCE: Final = 1e-9
_REPAIRS: Final = 8


@dataclass(frozen=True)
class Solution:
    """`picks`: the index of the choice of each group; `bound`: below which no assignment's damage lies."""

    picks: tuple[int, ...]
    size: int
    damage: float
    bound: float
    nodes: int

    @property
    def gap(self) -> float:
        """How far the damage may be above the optimum, relative to it."""
        return (self.damage - self.bound) / abs(self.damage) if self.damage else self.damage - self.bound


def solve(sizes: Sequence[Sequence[int]], damages: Sequence[Sequence[float]], capacity: int) -> Solution:
    """The assignment of least damage whose sizes add up to at most `capacity`.

    `sizes[g][c]` and `damages[g][c]` are of choice c of group g; a larger
    choice may do more damage, and damages may be negative. Of groups that are
    alike, earlier ones get the larger choices; among equal choices the earlier
    is taken. QuantmillError where even the least sizes do not fit.
    """
    kept = [undominated(*group) for group in zip(sizes, damages, strict=True)]
    least = sum(min(group) for group in sizes)
    if least > capacity:
        raise QuantmillError(f"{capacity} bytes are fewer than the {least} that are the least")
    sizes_kept = [[sizes[g][c] for c in choices] for g, choices in enumerate(kept)]
    damages_kept = [[damages[g][c] for c in choices] for g, choices in enumerate(kept)]
    if sum(group[-1] for group in sizes_kept) <= capacity:
        picks, bound, nodes = [len(choices) - 1 for choices in kept], None, 0
    else:
        picks, bound, nodes = _highs(sizes_kept, damages_kept, capacity)
    picks = _in_order(picks, sizes_kept, damages_kept)
    chosen = tuple(choices[pick] for choices, pick in zip(kept, picks, strict=True))
    damage = math.fsum(damages[g][c] for g, c in enumerate(chosen))
    return Solution(
        picks=chosen,
        size=sum(sizes[g][c] for g, c in enumerate(chosen)),
        damage=damage,
        bound=damage if bound is None else min(bound, damage),
        nodes=nodes,
    )


def undominated(sizes: Sequence[int], damages: Sequence[float]) -> list[int]:
    """The choices of a group that some capacity may want, smallest first.

    The others are no smaller than one that does no more damage.
    """
    kept: list[int] = []
    for choice in sorted(range(len(sizes)), key=lambda c: (sizes[c], damages[c], c)):
        if not kept or damages[choice] < damages[kept[-1]]:
            kept.append(choice)
    return kept


def _highs(sizes: list[list[int]], damages: list[list[float]], capacity: int) -> tuple[list[int], float, int]:
    """(picks, bound, nodes) of a knapsack that has to choose."""
    # What every choice of a group has in common is taken off, so that the rest is scaled by what matters.
    least = [min(group) for group in sizes]
    best = [min(group) for group in damages]
    rows = np.array([g for g, group in enumerate(sizes) for _ in group], np.int32)
    weights = np.array([size - least[g] for g, group in enumerate(sizes) for size in group], np.float64)
    costs = np.array([cost - best[g] for g, group in enumerate(damages) for cost in group], np.float64)
    unit = costs[costs > 0].mean() if (costs > 0).any() else 1.0
    room, bound, nodes = capacity - sum(least), None, 0
    for _ in range(_REPAIRS):
        taken, low, visited = _run(rows, weights / max(room, 1) * _SCALE, costs / unit, len(sizes))
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
    for option, value in (
        ("output_flag", False), ("threads", 1), ("random_seed", 0), ("mip_max_nodes", _MAX_NODES),
        ("mip_rel_gap", 0.0), ("mip_abs_gap", _TOLERANCE), ("mip_feasibility_tolerance", _TOLERANCE),
        ("primal_feasibility_tolerance", _TOLERANCE), ("dual_feasibility_tolerance", _TOLERANCE),
    ):  # fmt: skip
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
    # the largest value of each group: its rows stand together
    order = np.lexsort((-values, rows))
    taken = order[np.searchsorted(rows[order], np.arange(groups))]
    return taken, float(info.mip_dual_bound), int(info.mip_node_count)


def _in_order(picks: list[int], sizes: list[list[int]], damages: list[list[float]]) -> list[int]:
    """The same picks, those of groups that are alike sorted: the earlier group has the larger choice."""
    alike: dict[tuple, list[int]] = {}
    for g in range(len(picks)):
        alike.setdefault((tuple(sizes[g]), tuple(damages[g])), []).append(g)
    ordered = list(picks)
    for members in alike.values():
        for g, pick in zip(members, sorted((picks[g] for g in members), reverse=True), strict=True):
            ordered[g] = pick
    return ordered


def solver_name() -> str:
    """The solver and its version."""
    import highspy

    return f"HiGHS {highspy.Highs().version()}"
