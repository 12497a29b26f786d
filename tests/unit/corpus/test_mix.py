"""The choice of rows, the number of chunks, and their order."""

import random

import pytest

from quantmill.corpus.decode import Document
from quantmill.corpus.messages import BrokenRowError
from quantmill.corpus.mix import Broken, apportion, select, text_digest


def decode(value):
    if value.startswith("broken"):
        raise BrokenRowError(value)
    return Document(value, chat=False)


def chosen(values, **options):
    options = {"seed": 1, "characters": 10**9} | options
    return [row.document.text for row in select(values, decode, **options).rows]


VALUES = [f"row {i} " + "x" * (i % 17) for i in range(500)]


def test_the_choice_depends_on_the_seed_and_the_texts_alone():
    shuffled = random.Random(3).sample(VALUES, len(VALUES))
    for limits in ({"characters": 1000}, {"rows": 20}, {"characters": 1000, "rows": 20}):
        assert chosen(VALUES, **limits) == chosen(shuffled, **limits)
        assert chosen(VALUES, **limits) != chosen(VALUES, seed=2, **limits)


def test_the_choice_is_pinned():
    """These values must hold on any machine; others would mean other corpora for the same seed."""
    assert text_digest("ü") == 0x55F19DF5C1392F37
    assert "".join(chosen("abcdef")) == "dabcfe"


def test_a_smaller_choice_begins_the_larger_one():
    whole = chosen(VALUES)
    assert sorted(whole) == sorted(VALUES) and whole != VALUES
    assert chosen(VALUES, rows=20) == whole[:20]
    some = chosen(VALUES, characters=1000)
    assert some == whole[: len(some)]
    assert sum(map(len, some)) >= 1000 > sum(map(len, some[:-1]))


def test_every_row_is_as_likely():
    counts = [0] * 10
    for seed in range(2000):
        counts[int(chosen([str(i) for i in range(10)], seed=seed, rows=1)[0])] += 1
    assert min(counts) > 150 and max(counts) < 250


def test_what_is_not_used_is_counted():
    values = ["a", "broken", "b", "a", "", " \n", "a", "c"]
    result = select(values, decode, seed=1, characters=100, taken={text_digest("c")})
    assert (result.read, result.rows_broken, result.empty, result.taken, result.all) == (8, 1, 2, 1, True)
    assert {row.document.text: row.copies for row in result.rows} == {"a": 2, "b": 0}


def test_broken_rows_are_counted_by_their_reasons():
    result = select(["a", "broken", "b", "broken it is", "broken"], decode, seed=1, characters=100)
    assert result.broken == {"broken": Broken(rows=2, first=2), "broken it is": Broken(rows=1, first=4)}
    assert {row.document.text: row.number for row in result.rows} == {"a": 1, "b": 3}
    many = select([f"broken {i}" for i in range(1000)], decode, seed=1, characters=100)
    assert many.rows_broken == 1000 and len(many.broken) == 13
    assert many.broken["for other reasons"] == Broken(rows=988, first=13)


def test_a_copy_is_counted_wherever_it_stands():
    values = VALUES * 2
    random.Random(1).shuffle(values)
    assert all(row.copies == 1 for row in select(values, decode, seed=1, characters=500).rows)


def test_whether_more_could_be_had():
    assert select(VALUES, decode, seed=1, characters=10**9).all
    assert select(VALUES, decode, seed=1, characters=10**9, rows=3).all
    assert not select(VALUES, decode, seed=1, characters=100).all
    assert not select(VALUES, decode, seed=1, characters=100, rows=300).all


def test_no_more_is_held_than_was_asked_for():
    def many():
        for i in range(20_000):
            yield f"row {i} " + "x" * 100

    result = select(many(), decode, seed=1, characters=1000)
    held = [len(row.document.text) for row in result.rows]
    assert result.read == 20_000
    assert sum(held) - held[-1] < 1000 <= sum(held)


@pytest.mark.parametrize(
    ("weights", "chunks", "expected"),
    [
        ([0.5, 0.5], 64, [32, 32]),
        ([0.5, 0.5], 5, [3, 2]),
        ([1, 1, 1], 10, [4, 3, 3]),
        ([0.6, 0.3, 0.1], 10, [6, 3, 1]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
        ([98, 1, 1], 10, [10, 0, 0]),
        ([3.0], 7, [7]),
    ],
)
def test_chunks_are_shared_out_by_largest_remainder(weights, chunks, expected):
    assert apportion(weights, chunks) == expected
