"""Which shards a stage waits for: as many as the config wants, and no more than there are units."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from quantmill.errors import QuantmillError
from quantmill.flow.inputs import Inputs
from quantmill.flow.paths import Paths
from quantmill.flow.project import Project
from quantmill.flow.shards import Shards

Make = Callable[..., Project]
SOURCE: Any = SimpleNamespace(model="local", row="source")


def shards(project: Project) -> Shards:
    return Shards(Inputs(Paths(project), list))


def test_without_the_setting_there_are_none(make: Make) -> None:
    assert shards(make()).kld(SOURCE) == []


def test_each_leaves_a_file(make: Make) -> None:
    chunks = ("bench.kld.chunks", 40), ("bench.perplexity.chunks", 40), ("shards", 3)
    of = shards(make(*chunks))
    folder = "results/local/shards"
    assert of.kld(SOURCE) == [f"{folder}/kld/source/{number}of3" for number in range(3)]
    assert of.humaneval(SOURCE) == [f"{folder}/humaneval/source/{number}of3" for number in range(3)]
    recipe = SimpleNamespace(model="local", recipe="plain")
    assert of.gguf(recipe) == [f"{folder}/gguf/plain/{number}of3" for number in range(3)]


def test_no_more_than_units(make: Make) -> None:
    assert len(shards(make(("bench.kld.chunks", 9), ("shards", 5))).kld(SOURCE)) == 2
    assert shards(make(("bench.kld.chunks", 8), ("shards", 5))).kld(SOURCE) == []


def test_the_perplexity_finds_what_the_divergence_evaluated(make: Make) -> None:
    many = ("bench.kld.chunks", 40), ("bench.perplexity.chunks", 40), ("shards", 3)
    assert shards(make(*many)).perplexity(SOURCE) == []
    alone = make(*many, ("bench.kld", None))
    assert len(shards(alone).perplexity(SOURCE)) == 3


def test_a_shard_waits_for_no_other(make: Make) -> None:
    of = shards(make(("bench.kld.chunks", 40), ("shards", 3)))
    assert of.kld(SimpleNamespace(model="local", row="source", shard="0of3")) == []


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_below_one_is_refused(number: int, make: Make) -> None:
    with pytest.raises(QuantmillError, match="shards: input should be greater than or equal to 1"):
        make(("shards", number))
