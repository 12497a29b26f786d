"""Why results are stale, from the specs that they were made with and would have now."""

from __future__ import annotations

from typing import Any

import pytest

from quantmill import spec
from quantmill.flow.why import Due, differences, explain

FIRST = {"stage": "measure.imatrix", "version": 2, "config": {"chunks": 4}, "from": {"corpus": "a" * 64}}


def due(output: str, old: dict[str, Any] | None, new: dict[str, Any], *reasons: str) -> Due:
    return Due("a_rule", output, old, new, reasons)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 3}]}}, [("a.b[1].c", 2, 3)]),
        ({"a": [1]}, {"a": [1, 2]}, [("a", [1], [1, 2])]),
        ({"a": 0}, {"a": False}, []),
    ],
)
def test_differences_have_the_names_on_the_way_to_them(old: Any, new: Any, expected: list[Any]) -> None:
    assert list(differences(old, new)) == expected


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"config": {"chunks": 8}}, "chunks is 8, it was 4"),
        ({"config": {"chunks": 4, "seed": 1}}, "seed is 1, it was not set"),
        ({"config": {}}, "chunks is not set, it was 4"),
        ({"config": {"chunks": "x" * 99}}, f"chunks is {'x' * 59}…, it was 4"),
        ({"version": 3}, "the stage measure.imatrix of quantmill has version 3, it was 2"),
        ({"engine": "b" * 64}, "the engine's library is bbbbbbbbbbbb…, it was not set"),
        ({"from": {"corpus": "c" * 64}}, "corpus: its content is cccccccccccc…, it was aaaaaaaaaaaa…"),
    ],
)
def test_a_change_is_named_with_both_values(change: dict[str, Any], line: str) -> None:
    assert explain([due("x.gguf", FIRST, FIRST | change)]) == ["x.gguf:", f"  {line}"]


def test_what_is_made_from_stale_results_names_them() -> None:
    earlier = [due(f"{number}.parquet", FIRST, FIRST | {"config": {"chunks": number}}) for number in range(5)]
    made_from = {str(number): spec.digest(spec.canonical(one.new)) for number, one in enumerate(earlier)}
    last = due("x.gguf", FIRST | {"from": dict.fromkeys(made_from, "old")}, FIRST | {"from": made_from})
    assert explain([*earlier, last])[-1] == (
        "  is made from 0.parquet, 1.parquet, 2.parquet and 2 more, made anew"
    )


def test_a_list_of_results_that_has_become_longer() -> None:
    first = due("a.gguf", FIRST, FIRST | {"version": 3})
    made_from = {"quants": ["b" * 64, spec.digest(spec.canonical(first.new))]}
    last = due("card.md", FIRST | {"from": {"quants": ["b" * 64]}}, FIRST | {"from": made_from})
    assert explain([first, last])[-2:] == ["card.md:", "  is made from a.gguf, made anew"]
    alone = explain([due("card.md", FIRST | {"from": {"quants": []}}, FIRST | {"from": {"quants": ["b"]}})])
    assert alone[1] == '  quants: its content is ["b"], it was []'


def test_what_was_never_made_is_one_line_a_rule() -> None:
    jobs = [due(f"{name}.gguf", None, FIRST, "is missing") for name in "abcde"]
    assert explain(jobs) == ["not made yet, by a_rule: a.gguf, b.gguf, c.gguf and 2 more"]


def test_what_snakemake_knows_itself_stands_beside_it() -> None:
    assert explain([due("x.gguf", FIRST, FIRST, "is missing")]) == ["x.gguf:", "  is missing"]
    assert explain([due("x.gguf", FIRST, FIRST)]) == ["x.gguf:", "  what it is made from is made anew"]
    assert explain([]) == ["nothing is stale"]
