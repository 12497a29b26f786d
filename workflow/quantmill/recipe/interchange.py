"""Recipes in common forms, read and written: three forms of lines, and the types of another GGUF.

    regex         GGUF-Tool-Suite's lines, `^blk\\.0\\.ffn_up\\.weight$=iq4_ks`; `#` begins a comment
    tensor-types  llama-quantize's --tensor-type-file: `pattern=type` between blanks, no comments;
                  patterns become lower case (tools/quantize/quantize.cpp, parse_tensor_type_file)
    custom-q      ik_llama.cpp's --custom-q: `pattern=type` between commas
    gguf          the types that a GGUF has, by role and relative depth

In the forms of lines the first `=` ends the pattern. The pattern may match
anywhere in a name, and the first line that matches a tensor decides. Lines
without a match are refused here, so the rules made of them are `optional`: a
file may equal a plain preset.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from quantmill import command
from quantmill.bounded import bounded
from quantmill.errors import QuantmillError
from quantmill.files import read_user_text, split_lines, write_text
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.plan import PlanRow, read_plan
from quantmill.formats.types import IK_TYPES, is_quantized, named
from quantmill.model.header import read_source
from quantmill.model.roles import CLASSES, GROUPS, layer_of, role_of
from quantmill.progress import Log
from quantmill.recipe import presets, rules

FORMS: Final = ("regex", "tensor-types", "custom-q", "gguf")

# `^...$` without an alternative: the whole name.
_WHOLE: Final = re.compile(r"\^((?:[^|\\]|\\.)*)\$", re.DOTALL)
_ONE_NAME: Final = re.compile(r"\^((?:[\w-]|\\[.\-])+)\$")
_BLOCK: Final = re.compile(r"^(.*?blk\.)(\d+)(\..*)$")
# What llama.cpp may never quantize. A file need not have lines for it.
_NEED_NO_LINE: Final = frozenset(
    role for group in ("norm", "other", "router", "convolution", "unknown") for role in GROUPS[group]
)

_NO_FILE: Final = "check the recipe's field `file`"


class Place(NamedTuple):
    """What a clone compares: a role; where the role is a class of names, the name (`*` for the layer)."""

    role: str
    name: str
    predicts: bool
    """Whether it is a layer of multi-token prediction."""


@dataclass(frozen=True)
class Imported:
    """An imported recipe, as templates see it: rules as in a recipe, base, engine and warnings.

    `base` is the type for what no rule names. It is None where the file leaves
    some weights to a base that it does not name.
    """

    rules: list[dict[str, Any]]
    base: str | None
    engine: str = "mainline"
    notes: list[str] = field(default_factory=list)


def read(path: Path, form: str, header: Header) -> Imported:
    """The recipe in the file `path` of this `form`, for the model with this header.

    QuantmillError, with the line, for what is no pattern=type, for a pattern that
    is broken or matches no tensor, and for an unknown type; also for a GGUF that
    shares no role with the model.
    """
    if form not in FORMS:
        raise QuantmillError(f"unknown form {form}", path, f"it is one of {', '.join(FORMS)}")
    if form == "gguf":
        return clone(header, read_header(path, data=False))
    return of_lines(_lines(read_user_text(path, _NO_FILE), form), header, path)


def _lines(text: str, form: str) -> list[tuple[str, str]]:
    """(place, `pattern=type`) of each entry."""
    if form == "tensor-types":
        return [(f"entry {number}", _lowered(word)) for number, word in enumerate(text.split(), start=1)]
    if form == "regex":
        stripped = [(f"line {n}", line.strip()) for n, line in enumerate(split_lines(text), start=1)]
        return [(place, line) for place, line in stripped if line and not line.startswith("#")]
    entries = (part.strip() for part in text.replace("\n", ",").split(","))
    return [(f"entry {n}", entry) for n, entry in enumerate(filter(None, entries), start=1)]


def _lowered(word: str) -> str:
    pattern, separator, kind = word.partition("=")
    return pattern.lower() + separator + kind


def of_lines(lines: Sequence[tuple[str, str]], header: Header, where: object) -> Imported:
    """The rules of (place, `pattern=type`) entries; the places are for errors."""
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    decided: dict[str, str] = {}
    parsed: list[dict[str, Any]] = []
    notes = []
    for place, line in lines:
        here = f"{where}: {place}"
        pattern, separator, type_name = line.partition("=")
        kind = named(type_name.strip())
        if not (pattern and separator) or kind is None:
            what = f"unknown type {type_name}" if pattern and separator else f"{line} is no pattern=type"
            raise QuantmillError(what, here, r"such as ^blk\.0\.ffn_down\.weight$=q6_K")
        with bounded(f"`{pattern}`", here, "write it without repeats of repeats, such as (a+)+"):
            matches = _matches(pattern, shapes, here)
        if not matches:
            raise QuantmillError(f"{pattern} matches no tensor", here, "remove it; is it of another model?")
        free = [name for name in matches if name not in decided]
        if not free:
            notes.append(f"{place} of the imported file is shadowed by earlier ones and left out: {line}")
            continue
        decided |= dict.fromkeys(free, kind)
        parsed.append({"match": _whole(pattern), "type": kind, "optional": True})
    weights = [name for name in shapes if not _needs_no_line(name, shapes[name])]
    covered = all(name in decided for name in weights)
    sizes: Counter[str] = Counter()
    for name in weights if covered else ():
        sizes[decided[name]] += 1
    base = sizes.most_common(1)[0][0] if sizes else None
    return Imported(parsed, base, _engine(decided.values()), notes)


def clone(header: Header, other: Header) -> Imported:
    """The types of `other` for the model with this header.

    A layer gets the type of the layer at the same relative depth in `other`, for
    each role; layers of multi-token prediction are compared by themselves. The
    base decides roles that `other` lacks: its preset, if it names one, else its
    most common type. The notes name these roles, and those that only `other` has.
    """
    if not any(is_quantized(tensor.type) for tensor in other.tensors):
        raise QuantmillError("nothing in it is quantized", other.path, "give a quantized GGUF")
    theirs, ours = _by_role(other), _by_role(header)
    absent = _counted({place: layers for place, layers in ours.items() if place not in theirs})
    unused = {
        place: layers
        for place, layers in theirs.items()
        if place not in ours and any(is_quantized(kind) for kinds in layers.values() for kind in kinds)
    }
    cloned = []
    for place, by_layer in ours.items():
        if place not in theirs:
            continue
        kinds = [_common(kinds) for _, kinds in sorted(theirs[place].items())]
        layers = sorted(by_layer)
        by_type: dict[str, list[int]] = {}
        for position, layer in enumerate(layers):
            by_type.setdefault(kinds[_at_same_depth(position, len(layers), len(kinds))], []).append(layer)
        cloned += [_cloned(place, kind, chosen) for kind, chosen in by_type.items()]
    if not any(is_quantized(rule["type"]) for rule in cloned):
        raise QuantmillError(
            "none of its quantized tensors has a role that the model has",
            other.path,
            "take a GGUF of the same family",
        )
    weights = [t for t in other.tensors if len(t.shape) > 1]
    sizes: Counter[str] = Counter()
    for tensor in weights:
        sizes[tensor.type] += tensor.bytes
    number = other.value("general.file_type", -1)
    preset = next((name for name, known in presets.PRESETS.items() if known == number), None)
    engine = _engine(tensor.type for tensor in weights)
    base = preset if preset and engine == "mainline" else sizes.most_common(1)[0][0]
    notes = [f"{other.path.name} has no {absent}: {base} decides"] if absent else []
    notes += [f"{other.path.name} also has {_counted(unused)}, which the model has not"] if unused else []
    return Imported(cloned, base, engine, notes)


def lines_of(rows: Iterable[PlanRow], form: str) -> list[str]:
    """A plan as `pattern=type` lines, anchored, the layers of one tensor at one type together.

    Tensors that are never quantized have a line in the form `regex` alone, which
    has one for every tensor.
    """
    places: dict[tuple[str, str], dict[str, list[int]]] = {}
    for row in (row for row in rows if not row.made):
        if form != "regex" and row.reason.startswith("never quantized"):
            continue
        block = _BLOCK.match(row.name)
        place = (block[1], block[3]) if block else (row.name, "")
        places.setdefault(place, {}).setdefault(row.type, []).append(int(block[2]) if block else -1)
    lines = []
    for (before, after), kinds in places.items():
        for kind, layers in kinds.items():
            numbers = "" if layers == [-1] else "[0-9]+" if len(kinds) == 1 else _alternatives(layers)
            pattern = f"^{_escaped(before)}{numbers}{_escaped(after)}$"
            if form == "tensor-types":  # its patterns become lower case, the names do not
                pattern = re.sub("[A-Z]", ".", pattern)
            lines.append(f"{pattern}={kind}")
    return lines


def to_text(rows: Iterable[PlanRow], form: str) -> str:
    """The text of a file of `form`."""
    if form not in FORMS[:3]:
        raise QuantmillError(f"cannot be written as {form}", cure=f"choose one of {', '.join(FORMS[:3])}")
    return (",".join if form == "custom-q" else "\n".join)(lines_of(rows, form)) + "\n"


def _matches(pattern: str, names: dict[str, tuple[int, ...]], here: str) -> list[str]:
    """The names that the pattern matches anywhere."""
    one = _ONE_NAME.fullmatch(pattern)
    if one:
        name = one[1].replace("\\", "")
        return [name] if name in names else []
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise QuantmillError(
            f"{pattern} is no regular expression ({error})", here, r"a dot is written \."
        ) from None
    return [name for name in names if search(name)]


def _whole(pattern: str) -> str:
    """A pattern that may match anywhere, as one that must match the whole name."""
    anchored = _WHOLE.fullmatch(pattern)
    return anchored[1] if anchored else f".*(?:{pattern}).*"


def _needs_no_line(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) < 2 or role_of(name) in _NEED_NO_LINE


def engine_of(path: Path, form: str) -> str:
    """The engine of a file, without the model: `ik` where it has a type of that engine alone."""
    if form == "gguf":
        return _engine(tensor.type for tensor in read_header(path, data=False).tensors)
    entries = _lines(read_user_text(path, _NO_FILE), form)
    kinds = (named(line.rpartition("=")[2].strip()) for _, line in entries)
    return _engine(kind for kind in kinds if kind is not None)


def _engine(kinds: Iterable[str]) -> str:
    return "ik" if IK_TYPES.keys() & set(kinds) else "mainline"


def _by_role(header: Header) -> dict[Place, dict[int, list[str]]]:
    """The types of the matrices, by place and layer."""
    evaluated = header.evaluated
    types: dict[Place, dict[int, list[str]]] = {}
    for tensor in header.tensors:
        if len(tensor.shape) < 2:
            continue
        role, layer = role_of(tensor.name), layer_of(tensor.name)
        name = re.sub(r"blk\.\d+\.", "blk.*.", tensor.name) if role in CLASSES else ""
        place = Place(role, name, layer >= evaluated > 0)
        types.setdefault(place, {}).setdefault(layer, []).append(tensor.type)
    return types


def _counted(places: dict[Place, dict[int, list[str]]]) -> str:
    """`ffn_up (32), attn_q (8)`: places with their numbers of layers."""
    return ", ".join(f"{place.name or place.role} ({len(layers)})" for place, layers in places.items())


def _cloned(place: Place, kind: str, layers: list[int]) -> dict[str, Any]:
    """The rule of a place in some of its layers."""
    match = _escaped(place.name).replace("*", "[0-9]+")
    rule: dict[str, Any] = {"match": match} if match else {"role": place.role}
    rule["type"] = kind
    if layers[0] >= 0:
        rule["layers"] = layers
    return rule | {"optional": True}


def _at_same_depth(position: int, ours: int, theirs: int) -> int:
    """The position among `theirs` at the same relative depth as `position` among `ours`."""
    return round(position * (theirs - 1) / (ours - 1)) if ours > 1 else 0


def _common(kinds: list[str]) -> str:
    return min(Counter(kinds).items(), key=lambda item: (-item[1], item[0]))[0]


def _alternatives(layers: list[int]) -> str:
    return f"({'|'.join(map(str, sorted(layers)))})" if len(layers) > 1 else str(layers[0])


def _escaped(text: str) -> str:
    return text.replace(".", r"\.")


def _import(args: argparse.Namespace, log: Log) -> None:
    imported = read(args.file, args.form, read_source(args.model))
    base = args.base or imported.base
    if base is None:
        raise QuantmillError("leaves some weights to a base", args.file, "name it, such as --base Q4_K_M")
    fields = {"engine": imported.engine, "base": base, "notes": imported.notes, "rules": imported.rules}
    write_text(args.out, rules.dump(rules.parse(json.dumps(fields), args.file)))
    for note in imported.notes:
        log.say(f"warning: {note}")


def _export(args: argparse.Namespace, log: Log) -> None:
    rows = read_plan(args.plan)
    write_text(args.out, to_text(rows, args.form))
    log.say(f"{len(rows)} tensors in {len(lines_of(rows, args.form))} entries")


def main(args: argparse.Namespace, log: Log) -> None:
    """Import a recipe, or export a plan."""
    args.run(args, log)


def _arguments() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--log", type=Path, help="file for plain lines (default: stderr)")
    actions = arguments.add_subparsers(required=True)
    reader = actions.add_parser("import", help="read a file in a common form, write a recipe")
    reader.set_defaults(run=_import)
    reader.add_argument("--file", type=Path, required=True)
    reader.add_argument("--form", choices=FORMS, required=True)
    reader.add_argument("--model", type=Path, required=True, help="the source GGUF, or its manifest.tsv")
    reader.add_argument("--base", help="the base, for tensors that the file does not name")
    reader.add_argument("--out", type=Path, required=True, help="the recipe, YAML")
    writer = actions.add_parser("export", help="write a plan in a common form")
    writer.set_defaults(run=_export)
    writer.add_argument("--plan", type=Path, required=True, help="plans/<recipe>.tsv")
    writer.add_argument("--form", choices=FORMS[:3], required=True)
    writer.add_argument("--out", type=Path, required=True)
    return arguments


if __name__ == "__main__":
    command.run(_arguments(), main)
