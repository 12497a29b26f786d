"""What is withheld and why: dominated, collapsed, identical; and what saves a file from it."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantmill.card import write
from quantmill.files import read_json, write_json
from quantmill.formats.measurements import HumanEval
from quantmill.judge import advice, compare, frontier
from quantmill.judge.results import Results, read
from quantmill.progress import Log
from reports import complete, sha

Tree = tuple[Path, dict[str, Any]]

# name: (main type, embeddings, more, mean nll added, its sd): as in conftest
TWO = {"Q5_K_M": ("q5_K", "q8_0", "q6_K", 0.0080, 0.006), "Q4_K_L": ("q4_K", "f16", "q8_0", 0.0420, 0.010)}
NOISY = {"big": ("q5_K", "q8_0", "q6_K", 0.010, 0.2), "small": ("q5_K", "q6_K", "q6_K", 0.0099, 0.2)}


def edit(path: Path, **fields: Any) -> None:
    write_json(path, read_json(path) | fields)


def reasons(results: Results) -> dict[str, tuple[str, str | None]]:
    verdicts = frontier.unneeded(results).values()
    return {v.quant.name: (v.reason, v.instead.name if v.instead else None) for v in verdicts}


def test_a_file_is_dominated_by_one_no_larger_and_significantly_better(kld_tree: Tree) -> None:
    results = read(*kld_tree)
    assert reasons(results) == {"Q4_K_L": ("dominated", "Q5_K_M"), "IQ2_XXS": ("collapsed", None)}
    verdict = frontier.unneeded(results)["Q4_K_L"]
    assert verdict.difference is not None
    assert verdict.difference.mean == pytest.approx(0.066 - 0.015, abs=1e-6)
    assert 0 < verdict.difference.low < verdict.difference.mean < verdict.difference.high
    assert verdict.figure.startswith("0.05100 more KL divergence (95 %: 0.05")
    assert verdict.figure.endswith(", and Q5_K_M is 1.1 MiB smaller")


def test_by_perplexity_where_no_divergence_was_measured(tree: Tree) -> None:
    results = read(*tree)
    assert reasons(results)["Q4_K_L"] == ("dominated", "Q5_K_M")
    assert frontier.unneeded(results)["Q4_K_L"].figure.startswith("+3.46 % perplexity (95 %: +")


def test_a_difference_within_the_noise_decides_nothing(make_tree: Callable[..., Tree]) -> None:
    folder, config = make_tree(recipes=NOISY)
    results = read(folder, config | {"kld": True})
    big, small = results.quants
    assert small.loss and big.loss and small.loss.mean < big.loss.mean and small.bytes < big.bytes
    assert big.against(small).verdict == compare.SAME
    assert reasons(results) == {}


@pytest.mark.parametrize(("slower", "needed"), [(0.9, True), (0.97, False)])
def test_a_faster_file_stays_unless_nobody_would_notice(
    make_tree: Callable[..., Tree], slower: float, needed: bool
) -> None:
    folder, config = make_tree(recipes=TWO)
    config |= {"kld": True}
    theirs = read_json(folder / "bench" / "Q4_K_L" / "speed.json")["prompt"]
    samples = [slower * theirs["mean"]] * 5
    half = theirs | {"mean": slower * theirs["mean"], "sd": 0.1, "samples": samples}
    edit(folder / "bench" / "Q5_K_M" / "speed.json", prompt=half)
    assert ("Q4_K_L" not in reasons(read(folder, config))) == needed


@pytest.mark.parametrize(("score", "needed"), [(0.30, True), (0.55, False)])
def test_a_file_that_surely_scores_more_stays(
    make_tree: Callable[..., Tree], score: float, needed: bool
) -> None:
    folder, config = make_tree(recipes=TWO)
    config |= {"kld": True}
    for name in ("source", *config["recipes"]):
        value = score if name == "Q5_K_M" else 0.6
        humaneval(folder, name, round(164 * value))
    results = read(folder, config | {"humaneval": True})
    assert ("Q4_K_L" not in reasons(results)) == needed


def humaneval(folder: Path, row: str, passed: int, loops: int = 0, problems: int = 164) -> None:
    share = passed / problems
    measured = {
        "problems": problems,
        "passed": passed,
        "pass_at_1": share,
        "interval": [max(0.0, share - 0.075), share + 0.075],
        "audits": {"repetition": loops},
        "model_sha256": sha(row),
    }
    write_json(folder / "bench" / row / "humaneval.json", complete(HumanEval, measured))


@pytest.mark.parametrize(
    ("passed", "loops", "figure"),
    [
        ((100, 90), (2, 2), ""),
        ((100, 40), (2, 2), ""),  # half of the source's score lies within the interval
        ((100, 20), (2, 2), "HumanEval 20 of 164, the source 100 of 164"),
        ((100, 90), (2, 40), "40 of 164 answers to HumanEval end in a loop, 2 of the source's"),
        ((100, 90), (30, 55), ""),
        ((0, 0), (2, 2), ""),  # the source is at nothing itself: the score tells nothing
        ((0, 0), (2, 90), "90 of 164 answers to HumanEval end in a loop, 2 of the source's"),
    ],
)
def test_a_collapse_in_humaneval_is_named(
    make_tree: Callable[..., Tree], passed: tuple[int, int], loops: tuple[int, int], figure: str
) -> None:
    folder, config = make_tree(recipes=TWO)
    config |= {"kld": True, "humaneval": True, "withhold": "collapsed"}
    for row, ours, end in (
        ("source", passed[0], loops[0]),
        ("Q4_K_L", passed[0], loops[0]),
        ("Q5_K_M", passed[1], loops[1]),
    ):
        humaneval(folder, row, ours, end)
    results = read(folder, config)
    named = {verdict.quant.name: verdict.figure for verdict in frontier.withheld(results, "collapsed")}
    assert named == ({"Q5_K_M": figure} if figure else {})
    first = advice.recommended(results)
    assert first and first.name == ("Q4_K_L" if figure else "Q5_K_M")
    assert ("Q5_K_M" in frontier.best(results)) == (not figure)
    if figure:
        q5, q4 = results.quants if results.quants[0].name == "Q5_K_M" else reversed(results.quants)
        assert advice.note(q5, results) == f"collapsed: {figure}"
        assert "Q5_K_M" not in advice.note(q4, results) + " ".join(advice.choice(results))
        assert frontier.withheld(results, "collapsed")[0].facts["difference"] is None


def test_where_only_humaneval_was_measured_the_collapsed_are_not_among_the_choices(
    make_tree: Callable[..., Tree],
) -> None:
    folder, config = make_tree()
    config |= {"humaneval": True, "kld": False, "perplexity": False, "speed": False}
    for row in ("source", *config["recipes"]):
        humaneval(folder, row, 100, 90 if row == "IQ2_XXS" else 2)
    sentences = " ".join(advice.choice(read(folder, config)))
    assert "range from `Q4_K_M`" in sentences and "IQ2_XXS" not in sentences
    assert "Their closeness to the source was not measured" in sentences and "quality" not in sentences
    assert "collapsed: 90 of 164" in advice.note(read(folder, config).quants[-1], read(folder, config))
    edit(folder / "model.json", bytes=1 + read_json(folder / "gguf" / "tiny-Q4_K_M.json")["bytes"])
    sentences = " ".join(advice.choice(read(folder, config)))
    assert sentences.startswith("There is one file, `Q4_K_M` (") and "4 files are not smaller" in sentences


def test_few_problems_condemn_nothing(make_tree: Callable[..., Tree]) -> None:
    folder, config = make_tree(recipes=TWO)
    for row, loops in (("source", 0), ("Q4_K_L", 0), ("Q5_K_M", 2)):
        humaneval(folder, row, 3, loops, problems=4)
    results = read(folder, config | {"kld": True, "humaneval": True})
    assert "Q5_K_M" not in reasons(results)


def test_a_rival_that_is_dominated_itself_gives_way_to_the_best(make_tree: Callable[..., Tree]) -> None:
    chain = {
        "worst": ("q6_K", "f16", "q8_0", 0.06, 0.001),
        "middle": ("q6_K", "q8_0", "q8_0", 0.04, 0.001),
        "best": ("q6_K", "q6_K", "q6_K", 0.01, 0.001),
    }
    folder, config = make_tree(recipes=chain)
    verdicts = reasons(read(folder, config | {"kld": True}))
    assert verdicts == {"worst": ("dominated", "best"), "middle": ("dominated", "best")}


def test_a_duplicate_is_named_and_the_first_of_the_two_stays(make_tree: Callable[..., Tree]) -> None:
    same = ("q4_K", "q6_K", "q6_K", 0.02, 0.01)
    folder, config = make_tree(recipes={"Q4_K_M": same, "Q4_K_L": same})
    results = read(folder, config | {"kld": True})
    assert reasons(results) == {"Q4_K_L": ("identical", "Q4_K_M")}
    assert [v.reason for v in frontier.withheld(results, "collapsed")] == []


def test_each_policy_withholds_its_own(kld_tree: Tree) -> None:
    results = read(*kld_tree)
    assert frontier.withheld(results, "none") == []
    assert [v.quant.name for v in frontier.withheld(results, "collapsed")] == ["IQ2_XXS"]
    assert {v.quant.name for v in frontier.withheld(results, "dominated")} == {"Q4_K_L", "IQ2_XXS"}


def test_where_the_source_itself_is_absurd_only_duplicates_are_unneeded(kld_tree: Tree) -> None:
    folder, config = kld_tree
    edit(folder / "bench" / "source" / "perplexity.json", perplexity=54321.0)
    results = read(folder, config)
    assert (reasons(results), frontier.best(results)) == ({}, set())


def test_what_is_withheld_stands_apart_on_the_card(kld_tree: Tree) -> None:
    folder, config = kld_tree
    card = write.render(read(folder, config), config | {"withhold": "dominated"})
    before, after = card.split("## Withheld")
    assert "(tiny-Q4_K_L.gguf)" not in before and "(tiny-IQ2_XXS.gguf)" not in before
    assert "| `Q4_K_L` | 11.4 MiB | dominated | 0.05100 more KL divergence" in after
    assert "| `Q5_K_M`, 10.3 MiB |" in after
    assert "tiny-Q4_K_L.gguf" not in card.split("## Files in the repository")[1]
    assert "Perplexity of IQ2_XXS" not in before  # nor in the front matter


def test_withheld_json_says_what_condemned_each(kld_tree: Tree) -> None:
    verdicts = frontier.withheld(read(*kld_tree), "dominated")
    (one,) = [verdict.facts for verdict in verdicts if verdict.quant.name == "Q4_K_L"]
    assert json.loads(json.dumps(one))["rival"] == "Q5_K_M"
    assert (one["reason"], one["measure"], one["file"]) == ("dominated", "kld", "tiny-Q4_K_L.gguf")
    assert one["difference"]["low"] > 0


def test_a_model_of_which_nothing_is_left_has_a_card_that_says_so(make_tree: Callable[..., Tree]) -> None:
    folder, config = make_tree(recipes={"IQ2_XXS": ("iq2_xxs", "q5_K", "q3_K", 0.9, 0.06)})
    config |= {"kld": True, "withhold": "collapsed"}
    card = write.render(read(folder, config), config)
    assert "# Tiny-Test GGUF\n\nMade to test the card.\n" in card
    assert "\n**No file is offered:** the one that was made is withheld.\n" in card
    assert "| `IQ2_XXS` | 4.7 MiB | collapsed | KL divergence 1.353, comparable to about 3.9 times " in card
    assert "model-index" not in card and "## How to use" not in card and "★" not in card
    # beside it the page, whose one file is withheld, and no Modelfile
    plots = folder / "card" / "plots"
    write.main(
        argparse.Namespace(
            spec={"config": config}, results=folder, card=folder / "card/README.md", plots=plots
        ),
        Log(folder / "log"),
    )
    assert {path.name for path in plots.parent.iterdir()} == {
        "README.md",
        "index.html",
        "withheld.json",
        "plots",
        "modelfiles",
    }


def test_scores_are_compared_by_newcombes_interval() -> None:
    # Newcombe 1998, table II, method 10: 56/70 against 48/80, 0.2 with 0.0524 to 0.3339
    one = compare.Score(56 / 70, 0.69176, 0.87697, "")
    other = compare.Score(48 / 80, 0.49044, 0.70040, "")
    difference = compare.scores(one, other)
    assert (difference.mean, difference.low, difference.high) == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=2e-4
    )
    assert difference.verdict == "better"


def test_rates_are_compared_by_welchs_interval() -> None:
    # scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(), over the mean of b
    a, b = [10.1, 10.3, 9.9, 10.2, 10.0], [9.0, 9.4, 8.8, 9.1, 9.2]
    from scipy import stats

    halves = [{"mean": sum(x) / 5, "sd": stats.tstd(x), "samples": x} for x in (a, b)]
    difference = compare.rates(*halves)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (difference.low, difference.high) == pytest.approx((expected.low / 9.1, expected.high / 9.1))
    once = compare.rates(*({"mean": mean, "sd": 0.0, "samples": [mean]} for mean in (1.0, 9.0)))
    assert once.mean == pytest.approx(-8 / 9) and once.verdict == compare.SAME


def test_paired_answers_make_the_interval_of_their_difference_narrower() -> None:
    # Newcombe 1998 (paired), table II: 36, 12, 2, 0 of 50: 0.2 with 0.0569 to 0.3404 by method 10
    kinds = [(True, True)] * 36 + [(True, False)] * 12 + [(False, True)] * 2
    ours, other = zip(*kinds, strict=True)

    def wilson(passes: tuple[bool, ...], paired: bool) -> compare.Score:
        n, p, z = len(passes), sum(passes) / len(passes), 1.959964
        centre, reach = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        low, high = ((centre + sign * reach) / (1 + z**2 / n) for sign in (-1, 1))
        return compare.Score(p, low, high, "", passes if paired else ())

    difference = compare.scores(wilson(ours, True), wilson(other, True))
    assert (difference.mean, difference.low, difference.high) == pytest.approx(
        (0.2, 0.0569, 0.3404), abs=1e-4
    )
    same = [wilson(answers, paired) for answers in [(True, False) * 40] for paired in (True, False)]
    alike, apart = compare.scores(same[0], same[0]), compare.scores(same[1], same[1])
    assert alike.high - alike.low < 0.2 * (apart.high - apart.low)
