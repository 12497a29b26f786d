"""The native kernel against the same in numpy; its variants, its build."""

import numpy as np
import pytest
from numpy.typing import NDArray

from quantmill.engine import kernel

Floats = NDArray[np.float32]


def case(rows: int, columns: int, group: int, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Weights, correlated moments, an order, and the steps and offsets of a grid of 16 values."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((4 * columns, columns)).astype(np.float32)
    inputs += np.float32(0.7) * np.roll(inputs, 1, axis=1)
    weights = random.standard_normal((rows, columns)).astype(np.float32)
    steps = np.abs(weights.reshape(rows, -1, group)).max(axis=2).T / np.float32(7.5)
    return {
        "weights": weights,
        "moments": inputs.T @ inputs / np.float32(len(inputs)),
        "order": random.permutation(columns).astype(np.int32),
        "steps": np.ascontiguousarray(steps),
        "offsets": -8 * steps,
    }


def lower_of(moments: Floats, order: NDArray[np.int32]) -> Floats:
    backwards = order[::-1]
    return np.linalg.cholesky(moments[np.ix_(backwards, backwards)])


def in_numpy(
    weights: Floats,
    moments: Floats,
    order: NDArray[np.int32],
    steps: Floats,
    offsets: Floats,
    values: Floats,
) -> NDArray[np.uint8]:
    """The definition, in f64: columns in order, each rounded from w_k + sum of e_i M_ik."""
    upper = lower_of(moments.astype(np.float64), order)[::-1, ::-1]
    unit = upper / np.diagonal(upper)
    group = weights.shape[1] // len(steps)
    errors, codes = np.zeros(weights.shape), np.empty(weights.shape, np.uint8)
    for k, column in enumerate(order):
        step, offset = steps[column // group], offsets[column // group]
        target = weights[:, column] + errors[:, :k] @ unit[:k, k]
        distance = np.abs((target[:, None] - offset[:, None]) / step[:, None] - values)
        codes[:, column] = distance.argmin(axis=1)
        errors[:, k] = weights[:, column] - (offset + step * values[codes[:, column]])
    return codes


EVEN = np.arange(16, dtype=np.float32)
UNEVEN = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13.5, 14, 15], np.float32)


@pytest.mark.parametrize("values", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize(("rows", "columns", "group"), [(1, 32, 32), (37, 64, 16), (130, 96, 32)])
def test_it_is_the_definition(rows: int, columns: int, group: int, values: Floats) -> None:
    given = case(rows, columns, group)
    expected = in_numpy(**given, values=values)  # type: ignore[arg-type]
    panels = kernel.panels_of(lower_of(given["moments"], given["order"]))  # type: ignore[arg-type]
    table = None if values is EVEN else values
    for variant in (-1, 0):
        codes = kernel.feed_back(
            given["weights"],  # type: ignore[arg-type]
            given["order"],  # type: ignore[arg-type]
            panels,
            kernel.Grids(given["steps"], given["offsets"], len(values), table),  # type: ignore[arg-type]
            variant=variant,
        )
        # A value halfway between two codes may go either way, and what follows in its row with it.
        assert (codes == expected).mean() > 0.99


def test_the_targets_are_what_the_first_round_rounded() -> None:
    given = case(21, 64, 32)
    weights, order, steps = given["weights"], given["order"], given["steps"]
    lower = lower_of(given["moments"], order)  # type: ignore[arg-type]
    grids = kernel.Grids(steps, given["offsets"], 16)  # type: ignore[arg-type]
    targets = np.empty_like(weights)
    codes = kernel.feed_back(weights, order, kernel.panels_of(lower), grids, targets=targets)  # type: ignore[arg-type]
    values = (codes * steps.T.repeat(32, axis=1) + given["offsets"].T.repeat(32, axis=1))[:, order]
    upper = lower[::-1, ::-1]
    unit = upper / np.diagonal(upper) - np.eye(64)
    expected = weights[:, order] + (weights[:, order] - values) @ unit
    np.testing.assert_allclose(targets[:, order], expected, rtol=1e-4, atol=1e-4)


def test_another_round_lessens_the_cost() -> None:
    """It is a sweep of coordinate descent: no column's change makes the outputs worse."""
    given = case(90, 96, 32)
    weights, order, moments = given["weights"], given["order"], given["moments"]
    panels = kernel.panels_of(lower_of(moments, order))  # type: ignore[arg-type]
    others = kernel.all_panels_of(np.ascontiguousarray(moments[np.ix_(order[::-1], order[::-1])]))  # type: ignore[arg-type]
    grids = kernel.Grids(given["steps"], given["offsets"], 16)  # type: ignore[arg-type]

    def costs(more: Floats | None, variant: int) -> Floats:
        codes = kernel.feed_back(weights, order, panels, grids, others=more, variant=variant)  # type: ignore[arg-type]
        errors = weights - codes * grids.steps.T.repeat(32, axis=1) - grids.offsets.T.repeat(32, axis=1)
        return np.asarray(((errors @ moments) * errors).sum(axis=1), np.float32)

    for variant in (-1, 0):
        once, twice = costs(None, variant), costs(others, variant)
        assert (twice <= once * 1.0001).all()
        assert twice.mean() < 0.97 * once.mean()


def test_rows_do_not_depend_on_each_other() -> None:
    given = case(150, 64, 32)
    weights, steps, offsets = given["weights"], given["steps"], given["offsets"]
    panels = kernel.panels_of(lower_of(given["moments"], given["order"]))  # type: ignore[arg-type]

    def codes(rows: slice) -> NDArray[np.uint8]:
        grids = kernel.Grids(steps[:, rows], offsets[:, rows], 16)  # type: ignore[arg-type]
        return kernel.feed_back(weights[rows], given["order"], panels, grids)  # type: ignore[arg-type]

    whole = codes(slice(0, 150))
    assert (np.concatenate([codes(slice(0, 7)), codes(slice(7, 150))]) == whole).all()


def test_a_block_without_a_step_gets_the_first_code() -> None:
    given = case(4, 32, 32)
    zeros = np.zeros_like(given["steps"])
    panels = kernel.panels_of(lower_of(given["moments"], given["order"]))  # type: ignore[arg-type]
    grids = kernel.Grids(zeros, zeros, 16)  # type: ignore[arg-type]
    codes = kernel.feed_back(given["weights"], given["order"], panels, grids)  # type: ignore[arg-type]
    assert (codes == 0).all()


def some_entries(length: int, count: int = 60) -> Floats:
    """A codebook of 3 magnitudes, the smallest entry first."""
    random = np.random.default_rng(3)
    entries = np.unique(random.choice([1.0, 3.0, 5.0], (count, length)), axis=0)
    return np.concatenate([np.ones((1, length)), entries[entries.sum(axis=1) > length]]).astype(np.float32)


def chosen(x: Floats, square: Floats, entries: Floats, odd: int | None) -> tuple[int, Floats, float]:
    """The entry for the best values x, its values and their cost; `odd`: how many are negative, modulo 2."""
    signs = np.where(x < 0, -1.0, 1.0)
    if odd is not None and (signs < 0).sum() % 2 != odd:
        least, size = entries[0, 0], np.abs(x)
        more = ((size + least) ** 2 - np.maximum(least - size, 0) ** 2) * np.diagonal(square)
        signs[more.argmin()] *= -1
    away = x - signs * entries
    costs = np.einsum("ni,ij,nj->n", away, square, away)
    best = int(costs.argmin())
    return best, np.asarray(signs * entries[best]), float(costs[best])


def entries_in_numpy(given: dict[str, NDArray[np.generic]], entries: Floats, even: bool) -> Floats:
    """The definition, in f64: the values that the first round gives."""
    weights, order = given["weights"].astype(np.float64), given["order"]
    upper = lower_of(given["moments"].astype(np.float64), order)[::-1, ::-1]  # type: ignore[arg-type]
    length, values = entries.shape[1], np.empty(weights.shape)
    group = weights.shape[1] // len(given["steps"])
    for row, weight in enumerate(weights[:, order]):
        errors = np.zeros_like(weight)
        for first in range(0, len(order), 8):
            step = float(given["steps"][int(order[first]) // group, row])
            options = []
            for odd in (0, 1)[: 8 // length] if even else (None,):
                one, cost = errors.copy(), 0.0
                for start in range(first, first + 8, length):
                    own = slice(start, start + length)
                    fed = one[:start] @ upper[:start, own] @ np.linalg.inv(upper[own, own])
                    square = upper[own, own] @ upper[own, own].T
                    _, value, more = chosen((weight[own] + fed) / step, square, entries, odd)
                    one[own], cost = weight[own] - step * value, cost + more
                options.append((cost, one))
            errors = min(options, key=lambda option: option[0])[1]
        values[row, order] = weight - errors
    return np.asarray(values, np.float32)


def of_eights(rows: int, columns: int) -> dict[str, NDArray[np.generic]]:
    """A case whose order has eight neighbours together."""
    given = case(rows, columns, 16)
    eights = np.random.default_rng(5).permutation(columns // 8)
    given["order"] = (8 * eights[:, None] + np.arange(8)).reshape(-1).astype(np.int32)
    return given | {"steps": given["steps"] * np.float32(1.5)}


def by_entries(
    given: dict[str, NDArray[np.generic]], entries: Floats, even: bool, *, again: bool, variant: int = -1
) -> Floats:
    """The values that the kernel gives; with `even`, that its signs are even."""
    weights, order, steps, moments = (given[key] for key in ("weights", "order", "steps", "moments"))
    length = entries.shape[1]
    upper = lower_of(moments, order)[::-1, ::-1]  # type: ignore[arg-type]
    panels, squares = kernel.panels_and_squares_of(upper, length, factor=True)
    others, more = kernel.panels_and_squares_of(moments[np.ix_(order, order)], length)  # type: ignore[arg-type]
    book = kernel.Codebook(entries, even)
    numbers, signs = kernel.feed_back_entries(
        weights,  # type: ignore[arg-type]
        steps,  # type: ignore[arg-type]
        book,
        order,  # type: ignore[arg-type]
        panels,
        others if again else None,
        (squares, more),
        variant=variant,
    )
    negative = np.unpackbits(signs, axis=1, bitorder="little")
    assert not even or (negative.reshape(-1, 8).sum(axis=1) % 2 == 0).all()
    values = entries[numbers].reshape(weights.shape) * (1 - 2.0 * negative)
    return np.asarray(values * steps.T.repeat(16, axis=1), np.float32)


BOOKS = pytest.mark.parametrize(("length", "even"), [(4, False), (4, True), (8, False), (8, True)])


@BOOKS
@pytest.mark.parametrize("variant", [-1, 0])
def test_entries_of_a_codebook_are_chosen_by_the_definition(length: int, even: bool, variant: int) -> None:
    given, entries = of_eights(37, 64), some_entries(length)
    expected = entries_in_numpy(given, entries, even)
    values = by_entries(given, entries, even, again=False, variant=variant)
    assert np.isclose(values, expected, rtol=1e-4).mean() > 0.99


@BOOKS
@pytest.mark.parametrize("variant", [-1, 0])
def test_another_round_over_entries_lessens_the_cost(length: int, even: bool, variant: int) -> None:
    given, entries = of_eights(90, 96), some_entries(length)
    weights, moments = given["weights"], given["moments"]

    def costs(again: bool) -> Floats:
        errors = weights - by_entries(given, entries, even, again=again, variant=variant)
        return np.asarray(((errors @ moments) * errors).sum(axis=1), np.float32)

    once, twice = costs(False), costs(True)
    assert (twice <= once * 1.0001).all()
    assert twice.mean() < 0.97 * once.mean()


@BOOKS
def test_entries_of_a_row_do_not_depend_on_other_rows(length: int, even: bool) -> None:
    given, entries = of_eights(150, 64), some_entries(length)
    whole = by_entries(given, entries, even, again=True)
    for rows in (slice(0, 7), slice(7, 150)):
        part = given | {"weights": given["weights"][rows], "steps": given["steps"][:, rows]}
        assert (by_entries(part, entries, even, again=True) == whole[rows]).all()


@BOOKS
def test_entries_of_a_block_without_a_step_are_no_obstacle(length: int, even: bool) -> None:
    given, entries = of_eights(20, 64), some_entries(length)
    given["steps"][1] = 0
    values = by_entries(given, entries, even, again=True)
    assert np.isfinite(values).all()
    assert (values[:, 16:32] == 0).all() and (values[:, :16] != 0).all()
