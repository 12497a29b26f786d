"""What a draft head is worth (multi-token prediction): how much of it is accepted, and what that gains.

But for rounding, drafts do not change a greedy answer. A head that is wrong only costs time.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

from quantmill.formats.drafts import Drafts
from quantmill.formats.measurements import Rate, Served, Workload
from quantmill.judge import compare
from quantmill.judge.results import Results
from quantmill.text import share

BROKEN: Final = 0.05
"""A head is broken where the acceptance of single drafts is significantly below this. DeepSeek-V3's is 85 to
90 % (its technical report, 2024, 5.4.3).
"""

_OF_NONE: Final = 3.0
"""The 95 % limit of a share of which none of n was seen is 3 / n: J. A. Hanley, A. Lippman-Hand, "If nothing
goes wrong, is everything all right?", 1983.
"""


@dataclass(frozen=True)
class Acceptance:
    """The share of drafted tokens that the model accepts, with its 95 % interval (a bootstrap over the
    prompts), and how many tokens it writes a step.
    """

    length: int
    rate: float
    low: float
    high: float
    a_step: float


@dataclass(frozen=True)
class Gain:
    """Tokens a second with drafts of one length, beside those without: `faster` is the change as a share."""

    length: int
    rate: Rate
    faster: compare.Interval


def acceptances(report: Drafts | None) -> list[Acceptance]:
    """Of each draft length; empty where nothing was measured, or the file has no head."""
    return [
        Acceptance(
            length=draft["length"],
            rate=draft["accepted"] / draft["drafted"],
            low=low,
            high=max(high, min(1.0, _OF_NONE / draft["drafted"])),
            a_step=1 + draft["accepted"] / draft["steps"],
        )
        for draft in (report["lengths"] if report else [])
        if (ratio := compare.ratio(draft["accepted_by_chunk"], draft["drafted_by_chunk"]))
        for low, high in [ratio.interval]
    ]


def is_broken(report: Drafts | None) -> bool:
    """Whether hardly any single draft is accepted."""
    single = next(iter(acceptances(report)), None)
    return single is not None and single.high < BROKEN


def broken(results: Results) -> str:
    """Which heads are broken, in words; empty where none is."""
    reports = {"the source": results.source["draft"]}
    reports |= {quant.name: quant.measured["draft"] for quant in results.quants}
    names = [name for name, report in reports.items() if is_broken(report)]
    if not names:
        return ""
    of = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    singles = [acceptances(reports[name])[0] for name in names]
    most = max(singles, key=_rate)
    highest = max(one.high for one in singles)
    return (
        f"the draft head is broken in {of}: the model accepts {'at most ' if names[1:] else ''}"
        f"{share(most.rate, 1)} of its single drafts (95 % interval to {share(highest, 1)}), "
        "so drafts only cost time"
    )


def _rate(one: Acceptance) -> float:
    return one.rate


def without(report: Served) -> Rate:
    """Tokens a second of all workloads together, without drafts."""
    return _together(report["workloads"])


def gains(report: Served | None) -> list[Gain]:
    """What drafts of each measured length gain, shortest first."""
    if report is None:
        return []
    plain = without(report)
    made = [(draft["length"], _together(draft["workloads"])) for draft in report.get("drafts", [])]
    return [Gain(length, rate, compare.rates(rate, plain)) for length, rate in sorted(made, key=_length)]


def best(report: Served | None) -> Gain | None:
    """The draft length that is fastest, and significantly faster than none."""
    faster = [gain for gain in gains(report) if gain.faster.verdict == compare.BETTER]
    return max(faster, key=lambda gain: gain.rate["mean"], default=None)


def _length(one: tuple[int, Rate]) -> int:
    return one[0]


def _together(workloads: list[Workload]) -> Rate:
    """The rate of generating all workloads one after another, over the repetitions."""
    tokens = sum(one["generated_tokens"] for one in workloads)
    samples = [
        tokens / sum(one["generated_tokens"] / rate for one, rate in zip(workloads, run, strict=True))
        for run in zip(*(one["decode"]["samples"] for one in workloads), strict=True)
    ]
    spread = stdev(samples) if len(samples) > 1 else 0.0
    return {"tokens": round(tokens), "mean": fmean(samples), "sd": spread, "samples": samples}
