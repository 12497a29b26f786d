"""The summary: the source, the files, how they were made and checked, and all warnings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from quantmill import text
from quantmill.card.view import View
from quantmill.judge import draft
from quantmill.judge.quant import Quant
from quantmill.judge.results import Results


def build(view: View) -> dict[str, Any]:
    """It is on every card that offers a file."""
    imatrix = view.measured.imatrix
    return {
        "facts": view.measured.facts,
        "bpw": view.measured.bpw,
        "source": view.config["source"],
        "offered": view.offered,
        "imatrix": imatrix,
        "with_imatrix": sum(bool(quant.plan["imatrix"]) for quant in view.offered),
        "grids": grids(view.measured),
        "checked": checked(view.offered),
        "template": template(view.offered),
        "toolchain": sorted(view.config["toolchain"].items()),
        "warnings": warnings(view.measured),
    }


def grids(results: Results) -> str:
    """Which of the source's values lie on the grid of a type, and which files keep them (markdown)."""
    on_grids = results.facts.get("grids", {})
    if not on_grids:
        return ""
    places = [f"{count} tensors on that of {kind}" for kind, count in on_grids.items()]
    kept = [
        f"{text.code(quant.name)} ({sum(quant.plan['kept'].values())})"
        for quant in results.quants
        if "kept" in quant.plan
    ]
    files = f"kept without loss in {' and '.join(kept)}" if kept else "no file keeps them"
    return f"{', '.join(places)}: {files}"


def warnings(results: Results) -> list[tuple[str, list[str]]]:
    """All warnings of all stages: the text, and where it comes from; the same text stands once."""
    origins: dict[str, list[str]] = defaultdict(list)
    for warning in results.check["warnings"]:
        origins[warning].append("source")
    for name, corpus in results.corpora.items():
        for warning in corpus["warnings"]:
            origins[warning].append(f"corpus {name}")
    for warning in results.imatrix["warnings"] if results.imatrix else []:
        origins[warning].append("imatrix")
    for warning in results.moments["warnings"] if results.moments else []:
        origins[warning].append("second moments")
    for warning in results.sensitivity["warnings"] if results.sensitivity else []:
        origins[warning].append("sensitivity")
    if results.noise_floor:
        origins[
            f"the source's own predictions diverge from themselves by up to {results.noise_floor:.1e} "
            "(the noise floor): divergences as small as that mean nothing"
        ].append("KL divergence")
    if broken := draft.broken(results):
        origins[broken].append("draft head")
    for quant in results.quants:
        for warning in quant.plan["warnings"]:
            origins[warning].append(quant.name)
    return list(origins.items())


def checked(quants: Iterable[Quant]) -> str:
    """What the checks of the finished files found, in words; empty where there are none."""
    reports = [quant.checks for quant in quants if quant.checks]
    if not reports:
        return ""
    failed = sum(bool(report["failures"]) for report in reports)
    if failed:
        return f"{failed} of {len(reports)} failed"
    how = {report["tried"] for report in reports}
    by = " by its chat template" if all(report["template"] for report in reports) else ""
    words = [
        "the header of each file was read back"
        if "read" in how
        else "each file was loaded by its engine"
        if "loaded" in how
        else "each file was loaded by its engine and evaluated on a few tokens"
        if "evaluated" in how
        else f"each file was loaded by its engine and answers a question{by}",
        "the data of all their tensors are sound",
    ]
    if all(report["tokenizer"] == "lossless" for report in reports):
        words.append("texts come back from their tokens")
    if any(report["tokenizer"] == "lossy" for report in reports):
        words.append("**but an English text does not come back from its tokens**")
    return ", ".join(words)


def template(quants: Iterable[Quant]) -> str:
    """What the chat template takes, in words; it is the same in all files. Empty where there is none."""
    known = [quant.checks["template"] for quant in quants if quant.checks and quant.checks["template"]]
    if not known:
        return ""
    system = {
        "takes": "takes a system message",
        "joined": "takes no system message (engines join it to the first question)",
    }[known[0]["system"]]
    tools = {"takes": "takes tools", "leaves out": "leaves tools out", "refuses": "refuses tools"}
    return f"{system}; {tools[known[0]['tools']]}"
