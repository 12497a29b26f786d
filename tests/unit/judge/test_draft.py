"""What a draft head is worth: intervals, heads that are broken, the length that is fastest."""

from __future__ import annotations

from typing import Any

import pytest

from quantmill.formats.drafts import Drafts
from quantmill.formats.measurements import Served
from quantmill.judge import draft
from reports import complete

PROMPTS = 8


def drafts(*accepted: int, drafted: int = 100) -> Any:
    """draft.json of single drafts, so many accepted in each prompt."""
    one = {
        "length": 1,
        "drafted": drafted * len(accepted),
        "accepted": sum(accepted),
        "steps": drafted * len(accepted),
        "drafted_by_chunk": [drafted] * len(accepted),
        "accepted_by_chunk": list(accepted),
    }
    return complete(Drafts, {"type": "q8_0", "lengths": [one]})


def served(plain: list[float], **by_length: list[float]) -> Any:
    """served.json of one workload of 100 tokens: its rates, and those with drafts (d1 and so on)."""

    def workloads(rates: list[float]) -> list[dict[str, Any]]:
        return [{"name": "a", "generated_tokens": 100, "decode": {"samples": rates}}]

    made = [{"length": int(name[1:]), "workloads": workloads(rates)} for name, rates in by_length.items()]
    return complete(Served, {"workloads": workloads(plain), "drafts": made})


def test_the_interval_is_that_of_a_ratio_over_the_prompts() -> None:
    (one,) = draft.acceptances(drafts(40, 60, 50, 55, 45, 50, 48, 52))
    assert one.rate == 0.5 and one.a_step == 1.5
    assert 0.45 < one.low < 0.49 and 0.51 < one.high < 0.55


def test_of_none_accepted_the_limit_is_three_over_all() -> None:
    (one,) = draft.acceptances(drafts(*[0] * PROMPTS))
    assert (one.rate, one.low, one.high) == (0, 0, pytest.approx(3 / 800))


@pytest.mark.parametrize(
    ("report", "broken"),
    [
        (drafts(*[0] * PROMPTS), True),
        (drafts(1, 2, 0, 1, 3, 2, 1, 0), True),
        (drafts(*[2] * PROMPTS), True),  # the same share of each: its interval is a point
        (drafts(*[0] * PROMPTS, drafted=5), False),  # 0 of 40: it may be 7.5 %
        (drafts(1, 2, 0, 1, 30, 2, 1, 0), False),  # the interval reaches further
        (drafts(60, 70, 65, 80, 75, 66, 71, 69), False),
        (complete(Drafts, {}), False),  # of a file without a head
        (None, False),
    ],
)
def test_a_head_is_broken_where_hardly_any_draft_is_accepted(report: Any, broken: bool) -> None:
    assert draft.is_broken(report) is broken


def test_the_best_length_is_the_fastest_that_is_significantly_faster() -> None:
    report = served([100, 101, 99], d1=[150, 151, 149], d2=[170, 171, 172], d4=[90, 95, 92])
    assert [gain.length for gain in draft.gains(report)] == [1, 2, 4]
    best = draft.best(report)
    assert best is not None and best.length == 2 and best.faster.mean == pytest.approx(0.71)


def test_without_a_significant_gain_no_length_is_best() -> None:
    assert draft.best(served([100, 160, 40], d1=[110, 150, 60])) is None
    assert draft.best(served([100], d1=[900])) is None  # one repetition shows no spread
    assert draft.best(served([100, 101, 99])) is None
    assert draft.best(None) is None


def test_workloads_count_by_their_tokens() -> None:
    workloads = [
        {"name": "short", "generated_tokens": 10, "decode": {"samples": [10.0]}},
        {"name": "long", "generated_tokens": 90, "decode": {"samples": [30.0]}},
    ]
    rate = draft.without(complete(Served, {"workloads": workloads}))
    assert rate["mean"] == pytest.approx(100 / (1 + 3)) and rate["tokens"] == 100
