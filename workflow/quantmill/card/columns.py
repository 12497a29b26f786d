"""The columns of the main table: the fixed ones, and those of each measure in `measures.MEASURES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from quantmill import text
from quantmill.card.template import engine_name, score
from quantmill.judge import advice, compare, frontier
from quantmill.judge.quant import Measurements
from quantmill.judge.results import Results
from quantmill.measures import MAINLINE, MEASURES, SOURCE

LEFT: Final = ":--"
RIGHT: Final = "--:"


@dataclass(frozen=True)
class Row:
    """A file, or the source (then `file` is empty). A split file has no `sha256`: each part has its own."""

    name: str
    file: str
    type: str
    bytes: int
    bpw: float
    sha256: str
    measured: Measurements
    difference: compare.Difference | None
    engine: str
    rounding: str
    best: bool
    fastest: bool
    note: str


@dataclass(frozen=True)
class Column:
    """A column: its header, its alignment in markdown, and what it has in a row."""

    header: str
    align: str
    cell: Callable[[Row], str]


def rows(results: Results) -> list[Row]:
    """The source, then the files, largest first."""
    best = frontier.best(results)
    rates = [speed["generate"]["mean"] for quant in results.quants if (speed := quant.measured["speed"])]
    fastest = max(rates, default=None)
    source = Row(
        name=SOURCE,
        file="",
        type=results.type,
        bytes=results.facts["bytes"],
        bpw=results.bpw,
        sha256=results.facts["sha256"],
        measured=results.source,
        difference=None,
        engine=MAINLINE,
        rounding="",
        best=False,
        fastest=False,
        note=advice.source_note(results),
    )
    files = [
        Row(
            name=quant.name,
            file=quant.file,
            type=quant.type,
            bytes=quant.bytes,
            bpw=quant.bpw,
            sha256="" if quant.parts else quant.sha256,
            measured=quant.measured,
            difference=quant.difference,
            engine=quant.engine,
            rounding=quant.rounding,
            best=quant.name in best,
            fastest=(speed := quant.measured["speed"]) is not None and speed["generate"]["mean"] == fastest,
            note=advice.note(quant, results),
        )
        for quant in results.quants
    ]
    return [source, *files]


def columns(measured: Results, other_engine: bool) -> list[Column]:
    """All columns of a card; one of the engine where any file needs another than llama.cpp, and one of the
    rounding where the files differ in it.
    """
    roundings = {quant.rounding for quant in measured.quants}
    taken = [name for name, report in measured.source.items() if report]
    return [
        Column("File", LEFT, _file),
        Column("In short", LEFT, lambda row: row.note),
        Column("Size", RIGHT, lambda row: text.size(row.bytes)),
        Column("Type", LEFT, lambda row: row.type),
        *([Column("Rounding", LEFT, lambda row: row.rounding)] if len(roundings) > 1 else []),
        Column("bpw", RIGHT, lambda row: text.fixed(row.bpw)),
        *(column for name in MEASURES if name in taken for column in _of_measure(name, measured)),
        *([Column("Engine", LEFT, lambda row: engine_name(row.engine))] if other_engine else []),
        Column("sha256", LEFT, lambda row: f"`{row.sha256[:8]}`" if row.sha256 else "in parts"),
    ]


def _of_measure(name: str, measured: Results) -> list[Column]:
    """The columns of a measure; its headers are in the table of measures."""
    cells = _CELLS.get(name)
    if cells is None:
        return []
    settings = {}
    if speed := measured.source["speed"]:
        settings = {"prompt": speed["prompt"]["tokens"], "generate": speed["generate"]["tokens"]}
    headers = [header.format(**settings) for header in MEASURES[name].columns]
    # The last headers may be of what is measured on request.
    return [
        Column(header, align, cell) for header, (align, cell) in zip(headers, cells(measured), strict=False)
    ]


_Cell = tuple[str, Callable[[Row], str]]


def _kld(measured: Results) -> list[_Cell]:
    def mean(row: Row) -> str:
        kld = row.measured["kld"]
        if not row.file:
            return text.nats(measured.noise_floor or 0.0)
        return text.nats(kld["kld"]["mean"], kld["kld"]["error"]) if kld else ""

    def tail(row: Row) -> str:
        kld = row.measured["kld"]
        return text.nats(kld["kld"]["99.9%"]) if kld and row.file else ""

    def same_top(row: Row) -> str:
        kld = row.measured["kld"]
        if not kld or not row.file:
            return ""
        value, error = (text.fixed(100 * kld["same_top"][part], 1) for part in ("mean", "error"))
        return f"{value} ± {error} %"

    return [(RIGHT, mean), (RIGHT, tail), (RIGHT, same_top)]


def _perplexity(measured: Results) -> list[_Cell]:
    def value(row: Row) -> str:
        report = row.measured["perplexity"]
        return f"{text.fixed(report['perplexity'], 3)} ± {text.fixed(report['error'], 3)}" if report else ""

    def change(row: Row) -> str:
        difference = row.difference
        if difference is None:
            return ""
        verdict = "no verdict" if measured.unranked else difference.verdict
        return f"{text.percent(difference.percent, difference.percent_error)}, {verdict}"

    return [(RIGHT, value), (LEFT, change)]


def _embeddings(measured: Results) -> list[_Cell]:
    def distance(row: Row) -> str:
        report = row.measured["embeddings"]
        return text.nats(report["distance"]["mean"], report["distance"]["error"]) if report else ""

    def rank(row: Row) -> str:
        report = row.measured["embeddings"]
        return text.fixed(report["rank"]["mean"], 4) if report and row.file else ""

    def same_first(row: Row) -> str:
        report = row.measured["embeddings"]
        if not report or not row.file:
            return ""
        value, error = (text.fixed(100 * report["same_first"][part], 1) for part in ("mean", "error"))
        return f"{value} ± {error} %"

    return [(RIGHT, distance), (RIGHT, rank), (RIGHT, same_first)]


def _projector(measured: Results) -> list[_Cell]:
    def distance(row: Row) -> str:
        report = row.measured["projector"]
        return text.nats(report["distance"]["mean"], report["distance"]["error"]) if report else ""

    def error(row: Row) -> str:
        report = row.measured["projector"]
        return text.share(report["relative_error"]["mean"], 1) if report and row.file else ""

    def divergence(row: Row) -> str:
        report = row.measured["projector"]
        kld = report["answer"]["kld"] if report and "answer" in report else None
        return text.nats(kld["mean"], kld["error"]) if kld else ""

    def same_top(row: Row) -> str:
        report = row.measured["projector"]
        same = report["answer"]["same_top"] if report and "answer" in report and row.file else None
        return f"{text.fixed(100 * same['mean'], 1)} ± {text.fixed(100 * same['error'], 1)} %" if same else ""

    source = measured.source["projector"]
    asked = source is not None and "answer" in source
    return [(RIGHT, distance), (RIGHT, error), *([(RIGHT, divergence), (RIGHT, same_top)] if asked else [])]


def _speed(measured: Results) -> list[_Cell]:
    def prompt(row: Row) -> str:
        speed = row.measured["speed"]
        return text.rate(speed["prompt"]) if speed else ""

    def generate(row: Row) -> str:
        speed = row.measured["speed"]
        rate = text.rate(speed["generate"]) if speed else ""
        return f"**{rate}**" if row.fastest else rate

    return [(RIGHT, prompt), (RIGHT, generate)]


def _humaneval(measured: Results) -> list[_Cell]:
    def passed(row: Row) -> str:
        report = row.measured["humaneval"]
        return score(report["pass_at_1"], *report["interval"]) if report else ""

    return [(RIGHT, passed)]


_CELLS: Final[dict[str, Callable[[Results], list[_Cell]]]] = {
    "kld": _kld,
    "perplexity": _perplexity,
    "embeddings": _embeddings,
    "projector": _projector,
    "speed": _speed,
    "humaneval": _humaneval,
}
"""What the columns of a measure have in a row, in the order of `Measure.columns`."""


def _file(row: Row) -> str:
    if not row.file:
        return "*source*"
    star = "★ " if row.best else ""
    return f"{star}[{text.code(row.name)}]({quote(row.file)})"
