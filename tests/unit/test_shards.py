"""Shards share all units among them, and each is the same whatever the number of shards."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from quantmill.measure.score import cut, shared
from quantmill.shards import Shard


@pytest.mark.parametrize("total", [1, 2, 3, 8, 50])
def test_shards_share_all_of_it(total: int) -> None:
    units = list(range(21))
    parts = [Shard(number, total).of(units) for number in range(total)]
    assert sorted(unit for part in parts for unit in part) == units


@pytest.mark.parametrize("total", [1, 2, 3, 8, 50])
def test_a_shard_begins_with_its_own(total: int) -> None:
    units = list(range(21))
    for number in range(total):
        shard = Shard(number, total)
        ordered = shard.first(units)
        assert ordered[: len(shard.of(units))] == shard.of(units)
        assert sorted(ordered) == units
    assert Shard(0, 3).first(units[:6]) == [0, 3, 4, 1, 5, 2]  # the others' from their ends


@pytest.mark.parametrize("total", [1, 2, 3, 8])
def test_shards_cut_the_same_units(total: int) -> None:
    chunks = np.arange(43 * 4, dtype=np.int32).reshape(43, 4)
    units = [part.tobytes() for part in cut(chunks)]
    of_shards = [
        part.tobytes() for number in range(total) for part in cut(shared(chunks, Shard(number, total)))
    ]
    assert sorted(of_shards) == sorted(units)
    assert shared(chunks, None) is chunks


def test_a_shard_is_named_on_the_command_line() -> None:
    assert Shard.parse("3of8") == Shard(3, 8)
    assert str(Shard(3, 8)) == "3of8"
    assert Shard.parse("") is None


@pytest.mark.parametrize("text", ["8of8", "1of0", "0of0", "-1of4", "1/4", "x"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no shard: 0of4 to 3of4 are those of four"):
        Shard.parse(text)
