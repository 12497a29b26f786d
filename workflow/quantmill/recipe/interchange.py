"""Recipes as the field passes them around, read and written: three forms of lines, and another GGUF's types.

    regex         GGUF-Tool-Suite's lines, `^blk\\.0\\.ffn_up\\.weight$=iq4_ks`; `#` begins a comment
    tensor-types  llama-quantize's --tensor-type-file: `pattern=type` between blanks, no comments; it
                  lowers patterns (tools/quantize/quantize.cpp, parse_tensor_type_file)
    custom-q      ik_llama.cpp's --custom-q: `pattern=type` between commas
    gguf          the types that a GGUF has, by role and relative depth

In the three of lines the first `=` ends the pattern, which is searched for
anywhere in the name, and the first line that matches a tensor decides. What they
match is looked at here, so that the rules made of them are `optional`: a file of
a plain preset's types is no error for equalling its base.
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

# `^...$` around no alternative: the whole name.
_WHOLE: Final = re.compile(r"\^((?:[^|\\]|\\.)*)\$", re.DOTALL)
_ONE_NAME: Final = re.compile(r"\^((?:[\w-]|\\[.\-])+)\$")
_BLOCK: Final = re.compile(r"^(.*?blk\.)(\d+)(\..*)$")
# What llama.cpp may never quantize: a line for it is no mistake.
_MAY_BE_KEPT: Final = frozenset(
    role for group in ("norm", "other", "router", "convolution", "unknown") for role in GROUPS[group]
)

_NO_FILE: Final = "check the recipe's field `file`"


class Place(NamedTuple):
    """What a clone puts side by side: a role, or of a class the name (`*` for the layer)."""

    role: str
    name: str
    predicts: bool
    """Whether it is of multi-token prediction."""


@dataclass(frozen=True)
class Imported:
    """What a template makes a recipe of: rules as in a recipe, and what stands beside them.

    `base` is the type for what no rule names, None where the file leaves some
    weights to a base that it does not say.
    """

    rules: list[dict[str, Any]]
    base: str | None
    engine: str = "mainline"
    notes: list[str] = field(default_factory=list)


def read(path: Path, form: str, header: Header) -> Imported:
    """The recipe that `path` holds in `form`, for the model with this header.

    QuantmillError, with its line, for what is no pattern=type, a pattern that
    cannot compile or matches no tensor, a type that neither engine has; for a
    GGUF of whose roles none is the model's.
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
    """The rules of `pattern=type` entries, each with the place that is named in errors."""
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    decided: dict[str, str] = {}
    made: list[dict[str, Any]] = []
    notes = []
    for place, line in lines:
        here = f"{where}: {place}"
        pattern, separator, wanted = line.partition("=")
        kind = named(wanted.strip())
        if not (pattern and separator) or kind is None:
            what = f"unknown type {wanted}" if pattern and separator else f"{line} is no pattern=type"
            raise QuantmillError(what, here, r"such as ^blk\.0\.ffn_down\.weight$=q6_K")
        found = _found(pattern, shapes, here)
        if not found:
            raise QuantmillError(f"{pattern} matches no tensor", here, "remove it; is it of another model?")
        free = [name for name in found if name not in decided]
        if not free:
            notes.append(f"{place} of the imported file is shadowed by earlier ones and left out: {line}")
            continue
        decided |= dict.fromkeys(free, kind)
        made.append({"match": _whole(pattern), "type": kind, "optional": True})
    weights = [name for name in shapes if not _may_be_kept(name, shapes[name])]
    covered = all(name in decided for name in weights)
    sizes: Counter[str] = Counter()
    for name in weights if covered else ():
        sizes[decided[name]] += 1
    base = sizes.most_common(1)[0][0] if sizes else None
    return Imported(made, base, _engine(decided.values()), notes)


def clone(header: Header, other: Header) -> Imported:
    """The types of `other` for the model with this header.

    A role's layers are put side by side, the first with the first and the last
    with the last; those of multi-token prediction by themselves. The notes name
    the roles that `other` lacks, which are left to the base (the preset that
    `other` says it is, or else its commonest type), and those that it alone has.
    """
    if not any(is_quantized(tensor.type) for tensor in other.tensors):
        raise QuantmillError("nothing in it is quantized", other.path, "give a quantized GGUF")
    theirs, mine = _by_role(other), _by_role(header)
    absent = _counted({place: layers for place, layers in mine.items() if place not in theirs})
    left = _counted({
        place: layers for place, layers in theirs.items()
        if place not in mine and any(is_quantized(kind) for kinds in layers.values() for kind in kinds)
    })  # fmt: skip
    made = []
    for place, ours in mine.items():
        if place not in theirs:
            continue
        kinds = [_common(kinds) for _, kinds in sorted(theirs[place].items())]
        layers = sorted(ours)
        by_type: dict[str, list[int]] = {}
        for position, layer in enumerate(layers):
            by_type.setdefault(kinds[_beside(position, len(layers), len(kinds))], []).append(layer)
        made += [_cloned(place, kind, chosen) for kind, chosen in by_type.items()]
    if not any(is_quantized(rule["type"]) for rule in made):
        raise QuantmillError(
            "none of its quantized tensors has a role that the model has", other.path,
            "take a GGUF of the same family",
        )  # fmt: skip
    weights = [t for t in other.tensors if len(t.shape) > 1]
    sizes: Counter[str] = Counter()
    for tensor in weights:
        sizes[tensor.type] += tensor.bytes
    number = other.value("general.file_type", -1)
    preset = next((name for name, known in presets.PRESETS.items() if known == number), None)
    engine = _engine(tensor.type for tensor in weights)
    base = preset if preset and engine == "mainline" else sizes.most_common(1)[0][0]
    notes = [f"{other.path.name} has no {absent}: {base} decides"] if absent else []
    notes += [f"{other.path.name} also has {left}, which the model has not"] if left else []
    return Imported(made, base, engine, notes)


def lines_of(rows: Iterable[PlanRow], form: str) -> list[str]:
    """A plan as `pattern=type` lines, anchored, the layers of one tensor at one type together.

    Tensors that are never quantized are told in the form `regex` alone, where
    every tensor is expected.
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
            if form == "tensor-types":  # which lowers patterns, but not names
                pattern = re.sub("[A-Z]", ".", pattern)
            lines.append(f"{pattern}={kind}")
    return lines


def written(rows: Iterable[PlanRow], form: str) -> str:
    """The text of a file of `form`."""
    if form not in FORMS[:3]:
        raise QuantmillError(f"cannot be written as {form}", cure=f"choose one of {', '.join(FORMS[:3])}")
    return (",".join if form == "custom-q" else "\n".join)(lines_of(rows, form)) + "\n"


def _found(pattern: str, names: dict[str, tuple[int, ...]], here: str) -> list[str]:
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
    """A pattern that is searched for, as one that the whole name must match."""
    anchored = _WHOLE.fullmatch(pattern)
    return anchored[1] if anchored else f".*(?:{pattern}).*"


def _may_be_kept(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) < 2 or role_of(name) in _MAY_BE_KEPT


def engine_of(path: Path, form: str) -> str:
    """The engine whose types the file has, told without the model: `ik` where one is its own."""
    if form == "gguf":
        return _engine(tensor.type for tensor in read_header(path, data=False).tensors)
    entries = _lines(read_user_text(path, _NO_FILE), form)
    kinds = (named(line.rpartition("=")[2].strip()) for _, line in entries)
    return _engine(kind for kind in kinds if kind is not None)


def _engine(kinds: Iterable[str]) -> str:
    return "ik" if IK_TYPES.keys() & set(kinds) else "mainline"


def _by_role(header: Header) -> dict[Place, dict[int, list[str]]]:
    """The types of the matrices by place and layer."""
    evaluated = header.evaluated
    found: dict[Place, dict[int, list[str]]] = {}
    for tensor in header.tensors:
        if len(tensor.shape) < 2:
            continue
        role, layer = role_of(tensor.name), layer_of(tensor.name)
        name = re.sub(r"blk\.\d+\.", "blk.*.", tensor.name) if role in CLASSES else ""
        place = Place(role, name, layer >= evaluated > 0)
        found.setdefault(place, {}).setdefault(layer, []).append(tensor.type)
    return found


def _counted(places: dict[Place, dict[int, list[str]]]) -> str:
    """Places in words, in how many layers each is."""
    return ", ".join(f"{place.name or place.role} ({len(layers)})" for place, layers in places.items())


def _cloned(place: Place, kind: str, layers: list[int]) -> dict[str, Any]:
    """The rule of a place in some of its layers."""
    match = _escaped(place.name).replace("*", "[0-9]+")
    rule: dict[str, Any] = {"match": match} if match else {"role": place.role}
    rule["type"] = kind
    if layers[0] >= 0:
        rule["layers"] = layers
    return rule | {"optional": True}


def _beside(position: int, ours: int, theirs: int) -> int:
    """Where the layer at `position` of ours lies in theirs, at the same relative depth."""
    return round(position * (theirs - 1) / (ours - 1)) if ours > 1 else 0


def _common(kinds: list[str]) -> str:
    return min(Counter(kinds).items(), key=lambda item: (-item[1], item[0]))[0]


def _alternatives(layers: list[int]) -> str:
    return f"({'|'.join(map(str, sorted(layers)))})" if len(layers) > 1 else str(layers[0])


def _escaped(text: str) -> str:
    return text.replace(".", r"\.")


def _import(args: argparse.Namespace, log: Log) -> None:
    found = read(args.file, args.form, read_source(args.model))
    base = args.base or found.base
    if base is None:
        raise QuantmillError("leaves some weights to a base", args.file, "name it, such as --base Q4_K_M")
    fields = {"engine": found.engine, "base": base, "notes": found.notes, "rules": found.rules}
    write_text(args.out, rules.dump(rules.parse(json.dumps(fields), args.file)))
    for note in found.notes:
        log.say(f"warning: {note}")


def _export(args: argparse.Namespace, log: Log) -> None:
    rows = read_plan(args.plan)
    write_text(args.out, written(rows, args.form))
    log.say(f"{len(rows)} tensors in {len(lines_of(rows, args.form))} entries")


def main(args: argparse.Namespace, log: Log) -> None:
    """Import a recipe, or export a plan."""
    args.run(args, log)


def _arguments() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--log", type=Path, help="file for plain lines (default: stderr)")
    actions = arguments.add_subparsers(required=True)
    reader = actions.add_parser("import", help="a file of the field's, as a recipe of ours")
    reader.set_defaults(run=_import)
    reader.add_argument("--file", type=Path, required=True)
    reader.add_argument("--form", choices=FORMS, required=True)
    reader.add_argument("--model", type=Path, required=True, help="the source GGUF, or its manifest.tsv")
    reader.add_argument("--base", help="what decides a tensor that the file does not name")
    reader.add_argument("--out", type=Path, required=True, help="the recipe, YAML")
    writer = actions.add_parser("export", help="a plan of ours, in the field's form")
    writer.set_defaults(run=_export)
    writer.add_argument("--plan", type=Path, required=True, help="plans/<recipe>.tsv")
    writer.add_argument("--form", choices=FORMS[:3], required=True)
    writer.add_argument("--out", type=Path, required=True)
    return arguments


if __name__ == "__main__":
    command.run(_arguments(), main)
