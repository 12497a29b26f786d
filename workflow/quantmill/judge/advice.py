"""What the measurements say in words: which file to choose, and a sentence about each.

By KL divergence where it was measured, else by perplexity. Both are in nats: on
text that the source itself would write, the perplexity of a file is exp(KL
divergence) times the source's. So the same limits serve both. Embeddings are
judged by their distance, 1 less the cosine: half the share of a unit vector, by
its square, that a file gets wrong, so that 0.01 stands for the same 2 %.
"""

from __future__ import annotations

import math

from quantmill.judge import compare, frontier
from quantmill.judge.quant import DECODER, Quant
from quantmill.judge.results import Results
from quantmill.text import code, nats, percent, plural, size

NEAR_PERCENT = 2.0
"""A file loses little where its whole 95 % interval lies below this: the middle choice."""

NEAR = math.log1p(NEAR_PERCENT / 100)
"""The same in nats, 0.0198."""

NEAR_DISTANCE = NEAR_PERCENT / 200
"""The same of a distance of embeddings."""


def smallest_same(results: Results) -> Quant | None:
    """The smallest quant that is as good as the source.

    By KL divergence or embeddings, which no quant leaves as they are: the loss is significantly below
    `NEAR` or `NEAR_DISTANCE`. By perplexity: the file is not significantly worse.
    """
    same = [
        quant
        for quant in _worthwhile(results)
        if quant.loss
        and (quant.loss.verdict != compare.WORSE if quant.measure == "perplexity" else _is_near(quant))
    ]
    return min(same, key=lambda quant: quant.bytes, default=None)


def recommended(results: Results) -> Quant | None:
    """The first choice: that one, else the closest to the source; None where no file can be ranked."""
    if results.unranked or not _worthwhile(results):
        return None
    return smallest_same(results) or min(_worthwhile(results), key=frontier.loss)


def choice(results: Results) -> list[str]:
    """Two or three sentences that answer "which file should I choose?" (markdown)."""
    if results.unranked:
        return [f"**No advice can be given:** {results.unranked}."]
    measured = [quant for quant in results.quants if quant.loss and quant.name not in results.rejected]
    if not measured and _not_recommended(results):
        return _not_recommended(results)
    if not measured:
        return _by_size(results)
    last = recommended(results)
    if last is None:
        return [f"{_measure(results)} was measured on too few chunks to tell the files apart."]
    large = len(measured) - len(frontier.smaller(measured, results))
    of = "Of the files smaller than the source, " if large else ""
    if last is smallest_same(results):
        why = _NOT_WORSE if results.measure == "perplexity" else _below_near(results)
        first = f"**Take {_named(last)}:** the smallest file {why}"
    else:
        first = f"**{of}{_named(last)} is closest to the source**"
    sentences = [f"{first} ({_change(last)})."]
    if last.bytes >= results.facts["bytes"]:
        sentences.append("It is not smaller than the source: use the source instead if you can.")
    closest = min(_worthwhile(results), key=frontier.loss)
    if results.measure != "perplexity" and closest is not last:
        sentences.append(
            f"**If you have more memory, {_named(closest)}:** the closest to the source"
            f"{', of the files smaller than it' if large else ''} ({_change(closest)})."
        )
    usable = [quant for quant in frontier.recommendable(results) if quant.loss]
    near = [quant for quant in usable if _is_near(quant)]
    middle = min(near, key=lambda quant: quant.bytes, default=None)
    if middle and middle.bytes < last.bytes:
        last = middle
        sentences.append(
            f"**For less memory, {_named(middle)}:** the smallest file "
            f"{_below_near(results)} ({_change(middle)})."
        )
    tightest = min(usable, key=lambda quant: quant.bytes, default=None)
    if tightest and tightest.bytes < last.bytes:
        words = "smallest file" if tightest is results.quants[-1] else "smallest usable file"
        sentences.append(f"**The {words} is {_named(tightest)}** ({_change(tightest)}).")
    return sentences + _no_smaller(large) + _not_recommended(results)


def _by_size(results: Results) -> list[str]:
    """The same where no file's distance from the source was measured: of those that have not collapsed."""
    usable = [quant for quant in results.quants if not frontier.collapse(quant, results)] or results.quants
    smaller = frontier.smaller(usable, results)
    largest, smallest = smaller[0], smaller[-1]
    scored = any(quant.scores for quant in results.quants)
    unknown = "closeness to the source" if scored else "quality"
    if largest is smallest:
        sentences = [f"There is one file, {_named(largest)}. Its {unknown} was not measured."]
    else:
        sentences = [
            f"The files range from {_named(smallest)} to {_named(largest)}. "
            f"Their {unknown} was not measured. As a rule, take the largest that fits your memory"
            + (" with room for the context." if results.kind == DECODER else ".")
        ]
    return sentences + _no_smaller(sum(quant.bytes >= results.facts["bytes"] for quant in usable))


def _no_smaller(count: int) -> list[str]:
    if not count:
        return []
    return [
        f"{plural(count, 'file')} {'is' if count == 1 else 'are'} not smaller than the source: "
        "use the source instead if you can."
    ]


def _not_recommended(results: Results) -> list[str]:
    """A sentence about each file of gptq that is worse than nearest on some text."""
    worse = results.worse_than_nearest
    return [
        f"**Not recommended is {_named(quant)}:** {worse[quant.name].why}."
        for quant in results.quants
        if quant.name in worse
    ]


def note(quant: Quant, results: Results) -> str:
    """One short sentence about a file, from the measurements (markdown)."""
    for other in results.quants[: results.quants.index(quant)]:
        if other.content == quant.content:
            return f"duplicate of {code(other.name)}"
    if quant.name in results.rejected:
        return results.rejected[quant.name]
    smallest = quant is results.quants[-1] and len(results.quants) > 1
    if collapsed := frontier.collapse(quant, results):
        return f"collapsed: {collapsed}"
    if quant.loss is None or _few(quant) or results.unranked:
        return "smallest" if smallest else ""
    if quant.bytes >= results.facts["bytes"] and quant.loss.verdict != compare.BETTER:
        return "not smaller than the source, and not better"
    beaten = _beaten_by(quant, results)
    if beaten:
        return beaten
    notes = []
    if quant is smallest_same(results):
        notes.append(f"smallest {_SHORTLY[results.measure or 'perplexity']}")
    if frontier.loss(quant) == min(frontier.loss(other) for other in results.quants):
        notes.append("lowest perplexity" if results.measure == "perplexity" else "closest to the source")
    if smallest:
        notes.append("smallest")
    return "; ".join(notes) or _step(quant, results)


def source_note(results: Results) -> str:
    """The sentence of the source's row."""
    quantized = ", ".join(results.facts["quantized_types"])
    return "the original (baseline): all files are made from it and compared with it" + (
        f"; itself quantized ({quantized})" if quantized else ""
    )


def description(results: Results) -> str:
    """What the picture of size against quality shows, for those who cannot see it (plain text)."""
    plain, files = " ".join(choice(results)).replace("*", "").replace("`", ""), len(results.quants)
    if results.measure is None:
        return f"The sizes of {plural(files, 'file')}. {plain}"
    return f"{_measure(results)} against file size, {plural(files, 'file')} and the source. {plain}"


def _worthwhile(results: Results) -> list[Quant]:
    """The files that can be ranked and are smaller than the source; all of them where none is smaller.

    A rejected file is not among them, nor a collapsed one, unless all have collapsed.
    """
    accepted = [quant for quant in results.quants if quant.name not in results.rejected]
    ranked = [quant for quant in accepted if quant.loss and not _few(quant)]
    usable = [quant for quant in ranked if not frontier.collapse(quant, results)]
    return frontier.smaller(usable or ranked, results)


def _beaten_by(quant: Quant, results: Results) -> str:
    """Which file no larger is better, or smaller and no worse; empty where none is."""
    others = [other for other in results.quants if other.bytes <= quant.bytes and other.loss]
    others = [
        other
        for other in others
        if other is quant
        or not (frontier.collapse(other, results) or other.name in results.worse_than_nearest)
    ]
    other = min(others, key=frontier.loss)
    size = "smaller" if other.bytes < quant.bytes else "of the same size"
    if other is quant or frontier.loss(other) > frontier.loss(quant):
        return ""
    if quant.against(other).verdict == compare.WORSE:
        return f"skip: {code(other.name)} is {size} and significantly better"
    return f"{code(other.name)} is smaller and not worse" if size == "smaller" else ""


def _step(quant: Quant, results: Results) -> str:
    """What the step down from the next larger file of the frontier, else from the source, saves and costs."""
    best = frontier.best(results)
    larger = [other for other in results.quants if other.bytes > quant.bytes and other.name in best]
    name, bytes_, cost = "the source", results.facts["bytes"], quant.loss
    if larger:
        name, bytes_, cost = code(larger[-1].name), larger[-1].bytes, quant.against(larger[-1])
    assert cost is not None
    saved = f"{100 * (1 - quant.bytes / bytes_):.0f} % smaller than {name}"
    if isinstance(cost, compare.Difference):
        return f"{saved} for {percent(cost.percent)} perplexity"
    return f"{saved} for {nats(cost.mean)} more {frontier.LOSSES[results.measure or 'kld']}"


def _named(quant: Quant) -> str:
    return f"{code(quant.name)} ({size(quant.bytes)})"


def _change(quant: Quant) -> str:
    if quant.divergence and (report := quant.measured["kld"]):
        kld, same = report["kld"], report["same_top"]
        return (
            f"KL divergence {nats(kld['mean'], kld['error'])}; "
            f"both rank the same token first in {100 * same['mean']:.1f} % of all cases"
        )
    if quant.distance and (of := quant.measured["embeddings"]):
        mean, error = of["distance"]["mean"], of["distance"]["error"]
        return f"distance {nats(mean, error)}; rank correlation {of['rank']['mean']:.4f}"
    if quant.distance and (seen := quant.measured["projector"]):
        changed = percent(100 * seen["relative_error"]["mean"]).removeprefix("+")
        return f"distance {nats(quant.distance.mean, quant.distance.error)}; relative error {changed}"
    assert quant.difference is not None
    return f"{percent(quant.difference.percent, quant.difference.percent_error)} perplexity"


def _measure(results: Results) -> str:
    name = frontier.LOSSES[results.measure or "perplexity"]
    return f"{name[0].upper()}{name[1:]}"


def _is_near(quant: Quant) -> bool:
    """Whether a file is significantly close to the source."""
    limit = NEAR_DISTANCE if quant.measure == "embeddings" else NEAR
    return quant.loss is not None and quant.loss.high < limit


def _few(quant: Quant) -> bool:
    return quant.loss is not None and quant.loss.verdict == compare.FEW


def _below_near(results: Results) -> str:
    """What is said of a file that is significantly close to the source."""
    if results.measure == "kld":
        return f"with a KL divergence significantly (95 %) below {NEAR:.2f}"
    if results.measure == "embeddings":
        return f"with a distance significantly (95 %) below {NEAR_DISTANCE:.2f}"
    return f"whose perplexity is significantly (95 %) less than {NEAR_PERCENT:g} % above the source's"


_NOT_WORSE = "not significantly worse than the source"
_SHORTLY = {
    "kld": f"with a KL divergence below {NEAR:.2f}",
    "perplexity": _NOT_WORSE,
    "embeddings": f"with a distance below {NEAR_DISTANCE:.2f}",
}
