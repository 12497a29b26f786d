"""Sums of squares: numpy's bits, for rows of one matrix and of experts, in any number of threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nodes import random
from quantmill.engine import sums
from quantmill.engine.sums import squares


def expected(rows: np.ndarray) -> np.ndarray:
    return np.add.reduce(rows * rows, axis=0)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (7, 5), (512, 1024), (512, 2500), (33, 4097)])
def test_the_bits_are_numpy_s(count: int, columns: int) -> None:
    rows = random(count, columns)
    assert squares(rows, columns)[0].tobytes() == expected(rows).tobytes()


def test_rows_may_lie_apart() -> None:
    rows = random(9, 3, 40)[:, 1, :32]
    assert squares(rows, 32)[0].tobytes() == expected(np.ascontiguousarray(rows)).tobytes()


@pytest.mark.parametrize("used", [1, 3])
def test_each_row_counts_for_its_expert(used: int) -> None:
    """One row a token that all its experts take, or a row for each of them."""
    values, experts = random(50, used, 24), np.random.default_rng(1).integers(0, 6, (50, 3)).astype(np.int32)
    experts[experts == 4] = 5  # one that nothing is sent to
    rows = np.broadcast_to(values, (50, 3, 24))
    ours = squares(rows, 24, 6, experts.reshape(-1))
    for expert in range(6):
        tokens, slots = np.nonzero(experts == expert)
        theirs = expected(values[tokens, slots % used]) if len(tokens) else np.zeros(24, np.float32)
        assert ours[expert].tobytes() == theirs.tobytes()


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random(64, 3000)
    monkeypatch.setattr(sums, "_AT_LEAST", 1000)
    with ThreadPoolExecutor(3) as pool:
        for threads in (1, 2, 3, 7):
            assert squares(rows, 3000, pool=pool, threads=threads)[0].tobytes() == expected(rows).tobytes()
