"""docs/files.md, made of the types of the reports, the table of stages, and the prose beside them."""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NotRequired, Union, get_args, get_origin, is_typeddict

from quantmill import stages, tools
from quantmill.formats import (
    allocation,
    checks,
    corpus,
    cross,
    drafts,
    importance,
    measurements,
    moments,
    projected,
    proof,
    publication,
    source,
    speeds,
)
from quantmill.formats.report import Report, fields

REPORTS: Final[tuple[Report[Any], ...]] = (
    source.FETCHED,
    source.CONVERTED,
    source.CHECK,
    source.MODEL,
    corpus.CORPUS,
    importance.IMATRIX,
    moments.MOMENTS,
    cross.CROSS,
    allocation.SENSITIVITY,
    speeds.SPEEDS,
    allocation.ALLOCATION,
    allocation.FEASIBILITY,
    allocation.PLAN,
    source.MEMORY,
    publication.FACTS,
    checks.CHECKS,
    measurements.DIVERGENCE,
    measurements.PERPLEXITY,
    measurements.EMBEDDINGS,
    projected.PROJECTED,
    drafts.DRAFTS,
    measurements.SPEED,
    measurements.SERVED,
    measurements.HUMANEVAL,
    measurements.SAMPLES,
    measurements.TASKS,
    publication.WITHHELD,
    importance.ACTIVATIONS,
    publication.CHECKPOINT,
    publication.PARTS,
    proof.LOCK,
    proof.VERIFIED,
)
"""All JSON files between stages, in the order of the flow."""


def page() -> str:
    """docs/files.md: `files.md` beside this module, with the tables at the marks `<!-- ... -->`."""
    text = (Path(__file__).parent / "files.md").read_text("utf-8")
    text = text.replace("<!-- stages -->", _stages())
    for report in REPORTS:
        mark = f"<!-- {report.path} -->"
        if text.count(mark) != 1:
            raise ValueError(f"files.md has not one {mark}")
        text = text.replace(mark, _report(report))
    return text


def _stages() -> str:
    """The commands as a table."""
    rows = [
        *((stage.name, stage.what, stage.reads, stage.writes) for stage in stages.STAGES.values()),
        *(
            (tool.name, f"{tool.what} (no `--spec`: for people)", tool.reads, tool.writes)
            for tool in tools.TOOLS.values()
        ),
    ]
    lines = ["| command | does | reads | writes |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {' | '.join(cells)} |" for name, *cells in rows)])


def _report(report: Report[Any]) -> str:
    """What a report is, and its fields as nested lists."""
    lines = [f"{report.about} Written by `{report.stage}`.", ""]
    for kind in report.types:
        if is_typeddict(kind):
            lines += [_first_line(kind), "", *_fields(kind, 0), ""]
    return "\n".join(lines).rstrip()


def _fields(kind: Any, depth: int) -> list[str]:
    lines = []
    for name, hint in fields(kind).items():
        note, below = "", hint
        optional = name not in kind.__required_keys__
        while get_origin(below) in (Annotated, NotRequired):
            if get_origin(below) is Annotated:
                note = get_args(below)[1]
            below = get_args(below)[0]
        text = f"{'  ' * depth}- `{name}`{' (may be absent)' if optional else ''}: {type_name(below)}"
        nested = _nested(below)
        note = note or (_within_a_line(_first_line(nested)) if nested else "")
        lines.append(f"{text}; {note}" if note else text)
        if nested is not None:
            lines += _fields(nested, depth + 1)
    return lines


def type_name(hint: Any) -> str:
    """A type as people write it in JSON: text, number, list of text, mapping to numbers, or null."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_name(args[0])
    if origin in (Union, UnionType):
        if set(args) == {int, float}:
            return "number"
        return " or ".join(type_name(kind) for kind in args)
    if origin is list:
        return f"list of {_plural(type_name(args[0]))}"
    if origin is dict:
        return f"mapping of names to {_plural(type_name(args[1]))}"
    if origin is Literal:
        return " or ".join(map(str, args))
    names = {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null"}
    return "object" if is_typeddict(hint) else names.get(hint, "any value")


def _plural(name: str) -> str:
    return name if name in ("text", "any value", "true or false") or " " in name else f"{name}s"


def _nested(hint: Any) -> Any:
    """The TypedDict within a list, a mapping or an optional value; None where there is none."""
    if is_typeddict(hint):
        return hint
    kinds = [_nested(kind) for kind in get_args(hint) if kind is not NoneType]
    return next((kind for kind in kinds if kind is not None), None)


def _within_a_line(sentence: str) -> str:
    """A sentence without its capital, which an abbreviation keeps, and without its full stop."""
    start = sentence[:1] if sentence[1:2].isupper() else sentence[:1].lower()
    return start + sentence[1:].rstrip(".")


def _first_line(kind: Any) -> str:
    """The first line of a type's docstring; of those made by a call, their name."""
    text = (kind.__doc__ or "").partition("\n")[0]
    return text if text and not text.startswith("dict(") else f"{kind.__name__}:"
