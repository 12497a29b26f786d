"""What the quantizers are given of an importance matrix: the means, but for under-sampled experts."""

from pathlib import Path

import numpy as np
import pytest

import limits
from quantmill.formats.imatrix import UNDER_SAMPLED, Entry, Imatrix, read_gguf, write_gguf


def entry(sums: list[list[float]], counts: list[float]) -> Entry:
    return Entry(np.array(sums, np.float32), np.array(counts, np.float32))


def test_an_expert_never_seen_has_the_mean_of_the_others_and_not_1() -> None:
    result = entry([[400.0, 800.0], [0.0, 0.0], [300.0, 0.0]], [200, 0, 100]).made_up().mean()
    assert result.dtype == np.float32
    assert result.tolist() == [[2.0, 4.0], [pytest.approx(700 / 300), pytest.approx(800 / 300)], [3.0, 0.0]]


def test_what_an_under_sampled_expert_lacks_is_made_up_with_the_mean() -> None:
    seen = entry([[1000.0], [8.0 * 5]], [1000, 8])
    mean = 1040 / 1008
    assert seen.made_up().mean()[1, 0] == pytest.approx((40 + (UNDER_SAMPLED - 8) * mean) / UNDER_SAMPLED)
    # from that number on an expert has its own values alone
    full = entry([[1000.0], [5.0 * UNDER_SAMPLED]], [1000, UNDER_SAMPLED])
    assert full.made_up().mean()[1, 0] == 5


def test_a_dense_tensor_and_experts_that_were_all_seen_are_as_llama_cpp_takes_them() -> None:
    for result in (entry([[3.0, 9.0]], [3]), entry([[64.0], [128.0]], [32, 64])):
        assert np.array_equal(result.made_up().mean(), result.mean())


def test_where_no_expert_was_seen_nothing_is_made_up() -> None:
    assert entry([[0.0], [0.0]], [0, 0]).made_up().mean().tolist() == [[1.0], [1.0]]


def test_any_number_of_entries_holds_one_file_open(tmp_path: Path) -> None:
    written = {f"blk.{n}.x.weight": entry([[n, 1.0, 2.0]], [n + 1]) for n in range(200)}
    write_gguf(tmp_path / "i.gguf", Imatrix("d", 1, 8, written))
    with limits.few_files():
        read = read_gguf(tmp_path / "i.gguf").entries
    assert read.keys() == written.keys()
    for name, result in read.items():
        assert np.array_equal(result.in_sum2, written[name].in_sum2)
        assert np.array_equal(result.counts, written[name].counts)
