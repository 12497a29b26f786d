"""Which files nobody needs: dominated by another file, collapsed, or a duplicate of another.

The frontier is drawn over the bytes and all that was measured. A file is
dominated where another one is no larger, diverges significantly less (the whole
95 % interval of the paired difference; by perplexity where no divergence was
measured), and is significantly worse in nothing else: not in an evaluation,
and not slower by more than `NOTICEABLE`. Nor may it have been rejected because it is
on some domain worse than the same types rounded to nearest. A difference that is
not significant leaves a file where it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from quantmill.formats.publication import WithheldFile
from quantmill.judge import compare
from quantmill.judge.quant import Quant
from quantmill.judge.results import Results
from quantmill.judge.scores import HUMANEVAL
from quantmill.text import nats, percent, size

Policy = Literal["dominated", "collapsed", "none"]
DOMINATED, COLLAPSED, DUPLICATE = "dominated", "collapsed", "identical"
"""The reasons why a file is not needed, as withheld.json has them."""

COLLAPSED_FROM: Final = math.log(2)
"""The loss (nats) from which a file is of no use at any size: twice the source's perplexity."""

COLLAPSED_DISTANCE: Final = 0.5
"""The same of a distance of embeddings: what a file gets wrong is as large as the vector itself."""

LOSSES: Final = {
    "kld": "KL divergence",
    "perplexity": "perplexity",
    "embeddings": "distance of the embeddings",
}
"""What a loss is called, by its measure."""

HUMANEVAL_SHARE: Final = 0.5
"""A file with significantly less than this share of the source's HumanEval score has collapsed too,"""

LOOPS_SHARE: Final = 0.1
"""or one where significantly more answers end in a loop than of the source, by this share of all answers."""

NOTICEABLE: Final = 0.05
"""A file that is slower by a smaller share than this is not worse for it: nobody notices."""


@dataclass(frozen=True)
class Unneeded:
    """Why a file is not needed: the `reason`, the file to take `instead` if any, the figure in words.

    `difference` (nats) is the file's loss less that of the file to take instead,
    or the loss itself where the file has collapsed; None for a duplicate.
    """

    quant: Quant
    reason: str
    instead: Quant | None
    figure: str
    difference: compare.Paired | None

    @property
    def facts(self) -> WithheldFile:
        """Its entry in withheld.json."""
        d = self.difference
        return {
            "recipe": self.quant.name,
            "file": self.quant.file,
            "bytes": self.quant.bytes,
            "reason": self.reason,
            "rival": self.instead.name if self.instead else None,
            "rival_bytes": self.instead.bytes if self.instead else None,
            "figure": self.figure,
            "measure": self.quant.measure if d else None,
            "difference": {"mean": d.mean, "low": d.low, "high": d.high} if d else None,
        }


def unneeded(results: Results) -> dict[str, Unneeded]:
    """The files that nobody needs, by name; a file to take instead of another is needed itself.

    Where the measurements are not valid (`Results.unranked`), only duplicates are unneeded.
    """
    verdicts: dict[str, Unneeded] = {}
    for quant in results.quants:
        verdict = _duplicate(quant, results) or _collapsed(quant, results)
        if verdict:
            verdicts[quant.name] = verdict
    rest = [quant for quant in results.quants if quant.name not in verdicts]
    for quant in rest:
        better = dominating(quant, [other for other in rest if other.name not in results.worse_than_nearest])
        if better and not results.unranked:
            verdicts[quant.name] = _dominated(quant, better)
    # Where the file to take instead is dominated itself, the one that dominates both takes its place.
    for name, verdict in verdicts.items():
        last = verdict.instead
        while last and verdict.reason == DOMINATED and (above := verdicts.get(last.name)):
            last = above.instead
        if last and last is not verdict.instead and dominates(last, verdict.quant):
            verdicts[name] = _dominated(verdict.quant, last)
    return verdicts


def withheld(results: Results, policy: Policy) -> list[Unneeded]:
    """The files that are not offered, largest first: `dominated` includes collapsed files and duplicates."""
    if policy == "none":
        return []
    verdicts = unneeded(results).values()
    return [verdict for verdict in verdicts if policy == DOMINATED or verdict.reason == COLLAPSED]


def collapse(quant: Quant, results: Results) -> str:
    """Why the file is of no use at any size, in words; empty where it is not known to be."""
    return far(quant, results) or failing(quant, results)


def far(quant: Quant, results: Results) -> str:
    """By how much it is too far from the source, in words; empty where it is not, or that is not known."""
    limit = COLLAPSED_DISTANCE if quant.measure == "embeddings" else COLLAPSED_FROM
    if not quant.loss or results.unranked or loss(quant) < limit:
        return ""
    if quant.measure == "embeddings":
        return f"distance of the embeddings {nats(loss(quant))}: little is left of the source's"
    times = f"about {math.exp(loss(quant)):,.1f} times the source's"
    if quant.measure == "kld":
        return f"KL divergence {nats(loss(quant))}, comparable to {times} perplexity"
    return f"{times} perplexity"


def failing(quant: Quant, results: Results) -> str:
    """What it lost in HumanEval that makes it useless, in words; empty where the loss is not significant."""
    ours, source = quant.measured["humaneval"], results.source["humaneval"]
    if not (ours and source):
        return ""
    if (score := quant.scores.get(HUMANEVAL)) and (of := results.scores.get(HUMANEVAL)):
        share = HUMANEVAL_SHARE
        part = compare.Score(share * of.value, share * of.low, share * of.high, of.words)
        if compare.scores(score, part).high < 0:
            return f"HumanEval {score.words}, the source {of.words}"
    loops, usual = ((one["audits"]["repetition"], one["problems"]) for one in (ours, source))
    if compare.shares(loops, usual).low > LOOPS_SHARE:
        return f"{loops[0]} of {loops[1]} answers to HumanEval end in a loop, {usual[0]} of the source's"
    return ""


def best(results: Results) -> set[str]:
    """The best of each size: no file of as few bytes has as small a mean loss.

    The source is among the files compared. A collapsed or rejected file is the best of no size.
    """
    if results.unranked:
        return set()
    usable = [quant for quant in recommendable(results) if quant.loss]
    points = [(quant.bytes, loss(quant)) for quant in usable]
    are_best = compare.pareto([*points, (results.facts["bytes"], 0.0)])
    return {quant.name for quant, is_best in zip(usable, are_best, strict=False) if is_best}


def recommendable(results: Results) -> list[Quant]:
    """The files that may be recommended: not collapsed, and not rejected by an acceptance test."""
    return [
        quant
        for quant in results.quants
        if quant.name not in results.rejected and not collapse(quant, results)
    ]


def smaller(quants: list[Quant], results: Results) -> list[Quant]:
    """Those smaller than the source, which is better than the others and takes no more; all where none is."""
    return [quant for quant in quants if quant.bytes < results.facts["bytes"]] or quants


def loss(quant: Quant) -> float:
    """The mean loss (nats); infinite where none was measured."""
    return quant.loss.mean if quant.loss else math.inf


def dominating(quant: Quant, others: list[Quant]) -> Quant | None:
    """The best of the others that dominate the file; None where none does."""
    if quant.loss is None:
        return None
    # an interval that lies above zero has its mean there, so most pairs need no bootstrap
    better = [o for o in others if o is not quant and o.bytes <= quant.bytes and loss(o) < loss(quant)]
    return next((other for other in sorted(better, key=loss) if dominates(other, quant)), None)


def dominates(other: Quant, quant: Quant) -> bool:
    """Whether the other is no larger, significantly better, and significantly worse in nothing else."""
    if other.bytes > quant.bytes or quant.against(other).verdict != compare.WORSE:
        return False
    return not _slower(other, quant) and not _fails(other, quant)


def _slower(other: Quant, quant: Quant) -> bool:
    """Whether the other is significantly slower, by more than `NOTICEABLE`, at reading or writing."""
    theirs, ours = other.measured["speed"], quant.measured["speed"]
    if theirs is None or ours is None:
        return False
    halves = (theirs["prompt"], ours["prompt"]), (theirs["generate"], ours["generate"])
    return any(compare.rates(*half).high < -NOTICEABLE for half in halves)


def _fails(other: Quant, quant: Quant) -> bool:
    """Whether the other scores significantly less in an evaluation."""
    return any(
        compare.scores(other.scores[name], ours).high < 0
        for name, ours in quant.scores.items()
        if name in other.scores
    )


def _dominated(quant: Quant, better: Quant) -> Unneeded:
    difference = quant.against(better)
    if isinstance(difference, compare.Difference):
        low, high = difference.percent_interval
        more = f"{percent(difference.percent)} perplexity (95 %: {percent(low)} to {percent(high)})"
    else:
        interval = f"{nats(difference.low)} to {nats(difference.high)}"
        more = f"{nats(difference.mean)} more {LOSSES[quant.measure or 'kld']} (95 %: {interval})"
    saved = quant.bytes - better.bytes
    saving = f"{size(saved)} smaller" if saved else "of the same size"
    return Unneeded(quant, DOMINATED, better, f"{more}, and {better.name} is {saving}", difference)


def _collapsed(quant: Quant, results: Results) -> Unneeded | None:
    if figure := far(quant, results):
        return Unneeded(quant, COLLAPSED, None, figure, quant.loss)
    if figure := failing(quant, results):
        return Unneeded(quant, COLLAPSED, None, figure, None)
    return None


def _duplicate(quant: Quant, results: Results) -> Unneeded | None:
    for other in results.quants[: results.quants.index(quant)]:
        if other.content == quant.content:
            figure = f"every tensor has the same type as in {other.name}"
            return Unneeded(quant, DUPLICATE, other, figure, None)
    return None
