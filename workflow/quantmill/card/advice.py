"""What the measurements say in words: which file to choose, and a sentence about each."""

from __future__ import annotations

import math

from quantmill.card import compare
from quantmill.card.results import Quant, Results
from quantmill.card.text import code, percent, size

NEAR_PERCENT = 2.0
"""A file whose whole 95 % interval lies below this costs little: the middle choice."""

COLLAPSED = math.log(2)
"""ln of the perplexity ratio from which a file is no longer recommended at any size."""


def frontier(results: Results) -> set[str]:
    """The best of each size: quants that no smaller file, the source among them, matches in perplexity.

    A collapsed one is the best of no size.
    """
    usable = [quant for quant in results.quants if _ratio(quant) < COLLAPSED]
    points = [(quant.bytes, _ratio(quant)) for quant in usable]
    best = compare.pareto([*points, (results.facts["bytes"], 0.0)])
    return {quant.name for quant, is_best in zip(usable, best, strict=False) if is_best}


def smallest_same(results: Results) -> Quant | None:
    """The smallest quant whose perplexity is not measurably worse than the source's."""
    same = [q for q in _worthwhile(results) if q.difference and q.difference.verdict != compare.WORSE]
    return min(same, key=lambda quant: quant.bytes, default=None)


def recommended(results: Results) -> Quant | None:
    """The first choice: that one, else the closest to the source; None where nothing can be told."""
    if results.absurd or not _worthwhile(results):
        return None
    return smallest_same(results) or min(_worthwhile(results), key=_ratio)


def choice(results: Results) -> list[str]:
    """Two or three sentences that answer "which file should I choose?" (markdown)."""
    if results.absurd:
        assert results.perplexity is not None
        return [
            f"**No advice can be given:** the source's own perplexity is "
            f"{results.perplexity['perplexity']:,.0f}. Either this text is foreign to the model or the run "
            "is broken, and the differences below mean nothing."
        ]
    measured = [quant for quant in results.quants if quant.difference]
    if not measured:
        largest, smallest = results.quants[0], results.quants[-1]
        if largest is smallest:
            return [f"There is one file, {_named(largest)}. Its quality was not measured."]
        return [
            f"The files go from {_named(smallest)} to {_named(largest)}. Their quality was not measured: as "
            "a rule, take the largest that fits your memory with room left for the context."
        ]
    last = recommended(results)
    if last is None:
        return ["Perplexity was measured on too few chunks to tell the files apart."]
    if last is smallest_same(results):
        first = (
            f"**Take {_named(last)}:** the smallest file not measurably worse than the source in perplexity"
        )
    else:
        first = f"**Closest to the source is {_named(last)}**"
    sentences = [f"{first} ({_change(last)})."]
    if last.bytes >= results.facts["bytes"]:
        sentences.append(
            "It is no smaller than the source it was made from: take that instead where you can."
        )
    near = [q for q in measured if q.difference and q.difference.percent_interval[1] < NEAR_PERCENT]
    middle = min(near, key=lambda quant: quant.bytes, default=None)
    if middle and middle.bytes < last.bytes:
        last = middle
        sentences.append(
            f"**For less memory, {_named(middle)}:** the smallest that surely (95 %) costs less than "
            f"{NEAR_PERCENT:g} % ({_change(middle)})."
        )
    usable = [quant for quant in measured if _ratio(quant) < COLLAPSED]
    tightest = min(usable, key=lambda quant: quant.bytes, default=None)
    if tightest and tightest.bytes < last.bytes:
        words = "smallest" if tightest is results.quants[-1] else "smallest that has not collapsed"
        sentences.append(f"**The {words} is {_named(tightest)},** and it costs {_change(tightest)}.")
    return sentences


def note(quant: Quant, results: Results) -> str:
    """One short sentence about a file, from the measurements (markdown)."""
    for other in results.quants[: results.quants.index(quant)]:
        if other.types == quant.types:
            return f"every tensor as in {code(other.name)}"
    smallest = quant is results.quants[-1] and len(results.quants) > 1
    if quant.difference is None or _few(quant) or results.absurd:
        return "smallest" if smallest else ""
    if _ratio(quant) >= COLLAPSED:
        return f"collapsed: {math.exp(_ratio(quant)):,.1f} times the source's perplexity"
    if quant.bytes >= results.facts["bytes"] and quant.difference.verdict != compare.BETTER:
        return "no smaller than the source it was made from, and no better"
    beaten = _beaten_by(quant, results)
    if beaten:
        return beaten
    said = []
    if quant is smallest_same(results):
        said.append("smallest not measurably worse than the source")
    if _ratio(quant) == min(_ratio(other) for other in results.quants):
        said.append("lowest perplexity")
    if smallest:
        said.append("smallest")
    return "; ".join(said) or _step(quant, results)


def source_note(results: Results) -> str:
    """The sentence of the source's row."""
    quantized = ", ".join(results.facts["quantized_types"])
    return "what all are made from and compared with" + (
        f"; itself quantized ({quantized})" if quantized else ""
    )


def finding(results: Results) -> str:
    """What the picture of size against perplexity shows, for those who cannot see it (plain text)."""
    plain = " ".join(choice(results)).replace("*", "").replace("`", "")
    return f"Perplexity against file size, {len(results.quants)} files and the source. {plain}"


def _worthwhile(results: Results) -> list[Quant]:
    """What can be told apart and is smaller than the source; all of them where none is smaller."""
    told = [quant for quant in results.quants if quant.difference and not _few(quant)]
    return [quant for quant in told if quant.bytes < results.facts["bytes"]] or told


def _beaten_by(quant: Quant, results: Results) -> str:
    """That a smaller file is as good: measurably better, or no worse; empty where none is."""
    smaller = [other for other in results.quants if other.bytes < quant.bytes and other.perplexity]
    if not smaller or quant.perplexity is None:
        return ""
    other = min(smaller, key=lambda one: _ratio(one))
    if _ratio(other) > _ratio(quant):
        return ""
    assert other.perplexity is not None
    if compare.paired(quant.perplexity, other.perplexity).verdict == compare.WORSE:
        return f"skip: {code(other.name)} is smaller and measurably better"
    return f"{code(other.name)} is smaller and measures no worse"


def _step(quant: Quant, results: Results) -> str:
    """What the step down from the next larger file of the frontier, else from the source, saves and costs."""
    best = frontier(results)
    larger = [other for other in results.quants if other.bytes > quant.bytes and other.name in best]
    name, bytes_, reference = "the source", results.facts["bytes"], results.perplexity
    if larger:
        name, bytes_, reference = code(larger[-1].name), larger[-1].bytes, larger[-1].perplexity
    assert quant.perplexity is not None and reference is not None
    cost = compare.paired(quant.perplexity, reference)
    return (
        f"{100 * (1 - quant.bytes / bytes_):.0f} % smaller than {name} for {percent(cost.percent)} perplexity"
    )


def _named(quant: Quant) -> str:
    return f"{code(quant.name)} ({size(quant.bytes)})"


def _change(quant: Quant) -> str:
    assert quant.difference is not None
    return percent(quant.difference.percent, quant.difference.percent_error)


def _ratio(quant: Quant) -> float:
    return quant.difference.ln_ratio if quant.difference else math.inf


def _few(quant: Quant) -> bool:
    return quant.difference is not None and quant.difference.verdict == compare.FEW
