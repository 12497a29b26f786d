"""The native kernel against the same in numpy; its variants, its build."""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantmill.engine import kernel
from quantmill.errors import QuantmillError

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
    others = kernel.all_panels_of(moments[np.ix_(order, order)])  # type: ignore[arg-type]
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


def test_it_is_built_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    path = kernel.built()
    assert path.parent == tmp_path / "lib"
    assert path.stat().st_size
    monkeypatch.setenv("CXX", "/no/compiler")  # not asked again
    assert kernel.built() == path


@pytest.mark.parametrize(
    ("compiler", "line"),
    [
        ("false", r"feedback\.cpp: cannot be compiled \(the compiler says nothing\); use another C\+\+"),
        ("/no/compiler", r"feedback\.cpp: cannot be built into the environment \(No such file"),
    ],
)
def test_a_build_that_fails_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, line: str
) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(QuantmillError, match=line):
        kernel.built()
    assert not list((tmp_path / "lib").iterdir())


def test_without_a_compiler_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QuantmillError, match=r"feedback\.cpp: no C\+\+ compiler"):
        kernel.built()
