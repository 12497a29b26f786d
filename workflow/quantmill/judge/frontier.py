"""Which files nobody needs: what another one beats beyond doubt, what has collapsed, what is another's twin.

The frontier is drawn over the bytes and all that was measured. A file is
dominated where another one is no larger, surely diverges less (the whole 95 %
interval of the paired difference; by perplexity where no divergence was
measured), and is surely worse in nothing else: not in an evaluation, and not
slower by more than `NOTICED`. Whatever the intervals leave open leaves a file
where it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from quantmill.judge import compare
from quantmill.judge.results import HUMANEVAL, Quant, Results
from quantmill.text import nats, percent, size

Policy = Literal["dominated", "collapsed", "none"]
DOMINATED, COLLAPSED, IDENTICAL = "dominated", "collapsed", "identical"

COLLAPSED_FROM = math.log(2)
"""The loss (nats) from which a file is of no use at any size: twice the source's perplexity."""

KEPT = 0.5
"""A file that surely has less than this share of the source's HumanEval score has collapsed too,"""

LOOPS = 0.1
"""or one of whose answers surely so many more than of the source's, as a share of all, end in a loop."""

NOTICED = 0.05
"""A file that is slower by less is not worse for it: nobody notices."""


@dataclass(frozen=True)
class Verdict:
    """Why a file is of no use: the `reason`, the file that condemns it where one does, the figure in words.

    `difference` (nats) is the file's loss less the rival's, or the loss itself
    where the file has collapsed; None for a twin.
    """

    quant: Quant
    reason: str
    rival: Quant | None
    figure: str
    difference: compare.Paired | None

    @property
    def facts(self) -> dict[str, Any]:
        """What withheld.json says of it."""
        d = self.difference
        return {
            "recipe": self.quant.name,
            "file": self.quant.file,
            "bytes": self.quant.bytes,
            "reason": self.reason,
            "rival": self.rival.name if self.rival else None,
            "rival_bytes": self.rival.bytes if self.rival else None,
            "figure": self.figure,
            "measure": self.quant.measure if d else None,
            "difference": {"mean": d.mean, "low": d.low, "high": d.high} if d else None,
        }


def condemned(results: Results) -> dict[str, Verdict]:
    """The files that nobody needs, by name; none is condemned by one that is condemned itself.

    Where the measurements are in doubt (`Results.doubts`) only twins are.
    """
    found: dict[str, Verdict] = {}
    for quant in results.quants:
        verdict = _twin(quant, results) or _collapsed(quant, results)
        if verdict:
            found[quant.name] = verdict
    sound = [quant for quant in results.quants if quant.name not in found]
    for quant in sound:
        rival = dominating(quant, sound)
        if rival and not results.unranked:
            found[quant.name] = _dominated(quant, rival)
    # A rival that is dominated itself stands for the one that dominates both.
    for name, verdict in found.items():
        last = verdict.rival
        while last and verdict.reason == DOMINATED and (above := found.get(last.name)):
            last = above.rival
        if last and last is not verdict.rival and dominates(last, verdict.quant):
            found[name] = _dominated(verdict.quant, last)
    return found


def withheld(results: Results, policy: Policy) -> list[Verdict]:
    """What is not offered, largest first: `dominated` takes in what collapsed, and twins."""
    if policy == "none":
        return []
    found = condemned(results).values()
    return [verdict for verdict in found if policy == DOMINATED or verdict.reason == COLLAPSED]


def collapse(quant: Quant, results: Results) -> str:
    """Why the file is of no use at any size, in words; empty where it is not known to be."""
    return far(quant, results) or failing(quant, results)


def far(quant: Quant, results: Results) -> str:
    """By how much it is too far from the source, in words; empty where it is not, or that is not known."""
    if not quant.loss or results.unranked or loss(quant) < COLLAPSED_FROM:
        return ""
    times = f"{math.exp(loss(quant)):,.1f} times the"
    if quant.measure == "kld":
        return f"KL divergence {nats(loss(quant))}, the worth of {times} perplexity"
    return f"{times} source's perplexity"


def failing(quant: Quant, results: Results) -> str:
    """What it lost in HumanEval that no use is left of it, in words; empty where that is not sure."""
    ours, source = quant.humaneval, results.humaneval
    if not (ours and source):
        return ""
    if (score := quant.scores.get(HUMANEVAL)) and (of := results.scores.get(HUMANEVAL)):
        part = compare.Score(KEPT * of.value, KEPT * of.low, KEPT * of.high, of.words)
        if compare.scores(score, part).high < 0:
            return f"HumanEval {score.words}, the source {of.words}"
    loops, usual = ((one["audits"]["repetition"], one["problems"]) for one in (ours, source))
    if compare.shares(loops, usual).low > LOOPS:
        return f"{loops[0]} of {loops[1]} answers to HumanEval end in a loop, of the source's {usual[0]}"
    return ""


def best(results: Results) -> set[str]:
    """The best of each size: files that none of no more bytes matches, going by the mean loss alone.

    The source is among the rivals. What has collapsed, or is not recommended, is the best of no size.
    """
    if results.unranked:
        return set()
    usable = [quant for quant in sound(results) if quant.loss]
    points = [(quant.bytes, loss(quant)) for quant in usable]
    are_best = compare.pareto([*points, (results.facts["bytes"], 0.0)])
    return {quant.name for quant, is_best in zip(usable, are_best, strict=False) if is_best}


def sound(results: Results) -> list[Quant]:
    """The files that may be recommended: none that has collapsed, none whose gate is closed."""
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


def dominates(rival: Quant, quant: Quant) -> bool:
    """Whether the rival is no larger, surely better, and surely worse in nothing else."""
    if rival.bytes > quant.bytes or quant.against(rival).verdict != compare.WORSE:
        return False
    return not _slower(rival, quant) and not _fails(rival, quant)


def _slower(rival: Quant, quant: Quant) -> bool:
    """Whether the rival is surely slower by more than `NOTICED` at reading or writing."""
    if rival.speed is None or quant.speed is None:
        return False
    return any(
        compare.rates(rival.speed[half], quant.speed[half]).high < -NOTICED for half in ("prompt", "generate")
    )


def _fails(rival: Quant, quant: Quant) -> bool:
    """Whether the rival surely scores less in an evaluation."""
    for name, ours in quant.scores.items():
        theirs = rival.scores.get(name)
        if theirs and compare.scores(theirs, ours).high < 0:
            return True
    return False


def _dominated(quant: Quant, rival: Quant) -> Verdict:
    found = quant.against(rival)
    if isinstance(found, compare.Difference):
        low, high = found.percent_interval
        more = f"{percent(found.percent)} perplexity (95 %: {percent(low)} to {percent(high)})"
    else:
        more = f"{nats(found.mean)} more KL divergence (95 %: {nats(found.low)} to {nats(found.high)})"
    smaller = quant.bytes - rival.bytes
    saved = f"{size(smaller)} smaller" if smaller else "of the same size"
    return Verdict(quant, DOMINATED, rival, f"{more}, and {rival.name} is {saved}", found)


def _collapsed(quant: Quant, results: Results) -> Verdict | None:
    if figure := far(quant, results):
        return Verdict(quant, COLLAPSED, None, figure, quant.loss)
    if figure := failing(quant, results):
        return Verdict(quant, COLLAPSED, None, figure, None)
    return None


def _twin(quant: Quant, results: Results) -> Verdict | None:
    for other in results.quants[: results.quants.index(quant)]:
        if other.makes == quant.makes:
            return Verdict(quant, IDENTICAL, other, f"every tensor has the type that it has in {other.name}",
                           None)  # fmt: skip
    return None
