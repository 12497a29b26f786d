"""Files of gptq beside the same types rounded to nearest, by domain: verdicts, and what follows of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantmill.errors import QuantmillError
from quantmill.files import read_json, write_json
from quantmill.judge import advice, compare, frontier, memory
from quantmill.judge.results import Results, read

Tree = tuple[Path, dict[str, Any]]
Make = Callable[..., Tree]

BETTER = {"code": 0.4, "prose": 0.8}
WORSE = {"code": 0.4, "prose": 1.3}


def edit(path: Path, **fields: Any) -> None:
    write_json(path, read_json(path) | fields)


def notes(results: Results) -> dict[str, str]:
    """The note of each file."""
    return {quant.name: advice.note(quant, results) for quant in results.quants}


def test_each_domain_has_its_ratio_and_all_together(gptq_tree: Make) -> None:
    folder, config = gptq_tree(Q4_K_M=BETTER)
    (file,) = read(folder, config).rounded
    ours = read_json(folder / "bench" / "Q4_K_M" / "kld.json")["by_chunk"]["kld"]
    nearest = read_json(folder / "nearest" / "Q4_K_M.kld.json")["by_chunk"]["kld"]
    assert [(row.domain, row.chunks) for row in file.rows] == [("", 40), ("code", 20), ("prose", 20)]
    for row, part in zip(file.rows, (slice(None), slice(0, None, 2), slice(1, None, 2)), strict=True):
        assert row.kld == pytest.approx(statistics.fmean(ours[part]))
        assert row.nearest == pytest.approx(statistics.fmean(nearest[part]))
        assert row.ratio and row.ratio.ratio == pytest.approx(row.kld / row.nearest)
        low, high = row.ratio.interval
        assert low < row.ratio.ratio < high
    _, code, prose = file.rows
    assert code.ratio and code.ratio.interval[1] < 0.42 and prose.ratio and prose.ratio.interval[0] > 0.77
    assert {row.verdict for row in file.rows} == {compare.BETTER}
    assert not file.rejected and read(folder, config).rejected == {}


def test_worse_on_one_domain_is_rejected_however_good_the_mean(gptq_tree: Make) -> None:
    folder, config = gptq_tree(Q5_K_M=WORSE)
    results = read(folder, config)
    (file,) = results.rounded
    assert file.rows[0].verdict == compare.BETTER
    assert [row.domain for row in file.worse] == ["prose"]
    note = "**not recommended: on `prose` significantly worse than the same types rounded to nearest**"
    assert results.rejected == {"Q5_K_M": note} and notes(results)["Q5_K_M"] == note
    assert "Q5_K_M" not in frontier.best(results)
    assert "Q5_K_M" not in {quant.name for quant in frontier.recommendable(results)}
    assert "Q5_K_M" not in {quant.name for quant in memory.recommendable(results)}
    sentences = advice.choice(results)
    assert sentences[-1] == (
        "**Not recommended is `Q5_K_M` (10.3 MiB):** on `prose` significantly worse than the same types "
        "rounded to nearest."
    )
    assert not any("Q5_K_M" in sentence for sentence in sentences[:-1])
    # Before, it was: "skip: `Q5_K_M` is smaller and significantly better", and so it was withheld.
    assert "Q5_K_M" not in notes(results)["Q4_K_L"]
    verdicts = {verdict.quant.name: verdict for verdict in frontier.withheld(results, "dominated")}
    assert "Q4_K_L" not in {
        name for name, one in verdicts.items() if one.instead and one.instead.name == "Q5_K_M"
    }


def test_two_domains_are_named(gptq_tree: Make) -> None:
    results = read(*gptq_tree(Q5_K_M={"code": 1.2, "prose": 1.3}))
    assert results.rounded[0].why == (
        "on `code` and `prose` significantly worse than the same types rounded to nearest"
    )


def test_where_no_file_is_left_that_is_the_advice(gptq_tree: Make) -> None:
    folder, config = gptq_tree(Q5_K_M=WORSE)
    results = read(folder, config | {"recipes": ["Q5_K_M"], "rounding": {"Q5_K_M": True}})
    (sentence,) = advice.choice(results)
    assert sentence.startswith("**Not recommended is `Q5_K_M` (10.3 MiB):** on `prose` significantly worse")


def test_no_difference_rejects_nothing(gptq_tree: Make) -> None:
    results = read(*gptq_tree(Q5_K_M={"code": 1.0, "prose": 1.0}))
    assert {row.verdict for row in results.rounded[0].rows} == {compare.SAME}
    assert results.rejected == {}


def test_few_chunks_of_a_domain_tell_nothing(gptq_tree: Make) -> None:
    folder, config = gptq_tree(Q5_K_M=WORSE)
    report = read_json(folder / "corpus" / "held-out.json")
    for source, chunks in zip(report["sources"], (37, 3), strict=True):
        source["chunks"] = chunks
    write_json(folder / "corpus" / "held-out.json", report)
    assert [(row.domain, row.chunks, row.verdict) for row in read(folder, config).rounded[0].rows][1:] == [
        ("code", 37, compare.BETTER),
        ("prose", 3, compare.FEW),
    ]


def test_a_corpus_of_one_domain_has_one_row(gptq_tree: Make) -> None:
    folder, config = gptq_tree(Q5_K_M=WORSE)
    report = read_json(folder / "corpus" / "held-out.json")
    edit(folder / "corpus" / "held-out.json", sources=[report["sources"][0] | {"chunks": 40}])
    assert [(row.domain, row.chunks) for row in read(folder, config).rounded[0].rows] == [("code", 40)]


def test_what_is_not_compared_is_not_rejected(gptq_tree: Make) -> None:
    folder, config = gptq_tree(Q5_K_M=WORSE)
    assert read(folder, config | {"rounding": {"Q5_K_M": False}}).rounded == []
    edit(folder / "bench" / "source" / "kld.json", perplexity={"value": 54321.0, "error": 1.0})
    edit(folder / "bench" / "source" / "perplexity.json", perplexity=54321.0)
    results = read(folder, config)
    assert results.unranked and notes(results)["Q5_K_M"] == ""


def test_the_same_types_in_two_roundings_are_no_duplicates(make_tree: Any, gptq_tree: Make) -> None:
    same = ("q4_K", "q6_K", "q6_K", 0.05, 0.01)
    folder, config = make_tree(recipes={"A": same, "B": same})
    assert notes(read(folder, config))["B"] == "duplicate of `A`"
    edit(folder / "plans" / "B.json", rounding="gptq")
    assert "duplicate" not in notes(read(folder, config))["B"]


def test_a_divergence_of_another_file_or_of_other_chunks_is_refused(gptq_tree: Make) -> None:
    folder, config = gptq_tree(Q5_K_M=BETTER)
    path = folder / "nearest" / "Q5_K_M.kld.json"
    report = read_json(path)
    edit(path, model_sha256="0" * 64)
    with pytest.raises(QuantmillError, match=r"Q5_K_M\.kld\.json: measured on another file; delete it"):
        read(folder, config)
    write_json(path, report | {"chunks": 39})
    with pytest.raises(QuantmillError, match=r"Q5_K_M\.kld\.json: chunks differs from the reference's"):
        read(folder, config)


def test_a_ratio_is_narrow_where_the_share_is_the_same_on_every_chunk() -> None:
    nearest = [0.01, 0.5, 0.02, 0.9, 0.1, 0.03]
    half = compare.ratio([value / 2 for value in nearest], nearest)
    assert half and (half.ratio, half.interval) == (0.5, (0.5, 0.5))
    near = compare.ratio([value / 2 + 1e-4 * (-1) ** place for place, value in enumerate(nearest)], nearest)
    assert near and 0.49 < near.interval[0] < 0.5 < near.interval[1] < 0.51
    assert compare.ratio([0.1, 0.2], [0.0, 0.0]) is None
    one = compare.ratio([0.1], [0.2])
    assert one and (one.ratio, one.verdict) == (0.5, compare.FEW)
