"""Imports sensitivities in the published form of GGUF-Tool-Suite as a table of sensitivities.

They are two tables of comma-separated values. In the results, a row is a type
(`QTYPE`) and a column a tensor: the KL divergence with that tensor alone at that
type, 404 where it was not measured, 0 where it had no effect. In the curve, a
row is a type, with the KL divergence of all tensors at that type. The
sensitivity of a tensor at a type is its measured value, times the curve's value
at the type, divided by the curve's value at the type of the measurement.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.files import read_csv
from quantmill.formats.allocation import SENSITIVITY, ImportedSensitivity
from quantmill.formats.plan import PlanRow
from quantmill.formats.sensitivity import SensitivityRow, write_sensitivity
from quantmill.formats.types import IK_TYPES, fallback, is_quantized, known, named, tensor_bytes
from quantmill.model.header import read_source
from quantmill.progress import Log
from quantmill.recipe import plan, presets, rules

UNMEASURED: Final = 404.0
_SHOWN: Final = 4


@dataclass(frozen=True)
class Imported:
    """The rows of a table of sensitivities, and warnings."""

    rows: list[SensitivityRow]
    warnings: list[str]


def read_results(path: Path) -> dict[str, dict[str, float]]:
    """The values by type (as the file names it) and tensor."""
    header, *lines = _read(path)
    names = header[1:]
    twice = [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice:
        raise QuantmillError(f"the column {twice[0]} is there twice", path, "remove one")
    return {
        line[0]: {
            name: _number(cell, path, f"{line[0]}, {name}")
            for name, cell in zip(names, line[1:], strict=True)
        }
        for line in lines
    }


def read_curve(path: Path) -> dict[str, float]:
    """The values by type, as the file names it: of the first column after the type's."""
    _, *lines = _read(path)
    return {line[0]: _number(line[1], path, line[0]) for line in lines}


def convert(
    tensors: Iterable[PlanRow], results: Mapping[str, Mapping[str, float]], curve: Mapping[str, float]
) -> Imported:
    """The sensitivity of each tensor at each type of the curve that llama.cpp or ik_llama.cpp has.

    Where the results have several rows, the row whose type is nearest on the
    curve is used. A tensor that was not measured gets the median of its role, or
    of all tensors. QuantmillError where a measured type is not on the curve.
    """
    tensors = list(tensors)
    absent = sorted(label for label, value in curve.items() if value == UNMEASURED)
    curve = {label: value for label, value in curve.items() if value != UNMEASURED}
    points, warnings = _points(curve)
    if absent:
        warnings.append(f"404, not measured, at {_some(absent, 'type', 'types')} of the curve: left out")
    measured = {}
    for label, values in results.items():
        if not curve.get(label) and not points.get(named(label) or ""):
            what = f"the curve has no value for {label}, at which the tensors were measured"
            raise QuantmillError(what, cure="add it to the curve")
        reference = curve.get(label) or points[named(label) or ""]
        measured[label] = (reference, _complete(tensors, values, label, warnings))
    rows = []
    for tensor in tensors:
        done: set[str] = set()
        for kind, value in points.items():
            real = fallback(kind, tensor.shape[0], "ik" if kind in IK_TYPES else "mainline")
            value = points.get(real, value)
            if real in done or not is_quantized(real):
                continue
            done.add(real)
            reference, values = min(measured.values(), key=lambda row: abs(math.log(value / row[0])))
            rows.append(
                SensitivityRow(
                    name=tensor.name,
                    role=tensor.role,
                    layer=tensor.layer,
                    shape=tensor.shape,
                    type=real,
                    bytes=tensor_bytes(real, tensor.shape),
                    kld=values[tensor.name] * value / reference,
                    how="imported",
                )
            )
    warnings += _unused(tensors, results)
    return Imported(rows, warnings)


def _points(curve: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
    """The curve's types that an engine has, fewest bits first, and warnings."""
    warnings = []
    foreign = sorted(label for label in curve if named(label) is None)
    if foreign:
        warnings.append(f"neither engine has {_some(foreign, 'type', 'types')} of the curve")
    of = {kind: value for label, value in curve.items() if (kind := named(label)) and is_quantized(kind)}
    free = sorted(kind for kind, value in of.items() if value == 0)
    if free:
        warnings.append(f"the curve is zero at {_some(free, 'type', 'types')} that cannot be: left out")
    points = {kind: of[kind] for kind in sorted(of, key=lambda k: (known(k).bits, k)) if of[kind] > 0}
    if not points:
        raise QuantmillError("the curve has no type that an engine could write", cure="give another curve")
    worse = []
    for kind, value in points.items():
        better = [k for k, v in points.items() if v < value and known(k).bits < known(kind).bits]
        if better:
            best = min(better, key=lambda k: (known(k).bits, k))
            worse.append(f"{kind} ({value:.3g}) above {best} ({points[best]:.3g})")
    if worse:
        warnings.append(f"the curve rises with bits: {_some(worse, 'type', 'types')}")
    return points, warnings


def _complete(
    tensors: Sequence[PlanRow], values: Mapping[str, float], label: str, warnings: list[str]
) -> dict[str, float]:
    """A value for every tensor; the median of its role, or of all, where it was not measured."""
    measured = {t.name: v for t in tensors if (v := values.get(t.name, UNMEASURED)) != UNMEASURED}
    if not measured:
        what = f"the row {label} has no value of any tensor of the model"
        raise QuantmillError(what, cure="remove it; is it of another model?")
    absent = [tensor.name for tensor in tensors if tensor.name not in values]
    skipped = [tensor.name for tensor in tensors if values.get(tensor.name) == UNMEASURED]
    for names, why in ((absent, "no column for"), (skipped, "404, not measured, for")):
        if names:
            text = f"{label}: {why} {_some(names, 'tensor', 'tensors')}: the median of the role is taken"
            warnings.append(text)
    zero = sorted(name for name, value in measured.items() if value == 0)
    known_type = named(label)
    if zero and known_type and is_quantized(known_type):
        warnings.append(
            f"{label}: exactly zero for {_some(zero, 'tensor', 'tensors')}, which no quantization is"
        )
    by_role: dict[str, list[float]] = {}
    for tensor in tensors:
        if tensor.name in measured:
            by_role.setdefault(tensor.role, []).append(measured[tensor.name])
    usual = median(measured.values())
    return {
        tensor.name: measured.get(tensor.name, median(by_role.get(tensor.role, [usual])))
        for tensor in tensors
    }


def _unused(tensors: Iterable[PlanRow], results: Mapping[str, Mapping[str, float]]) -> list[str]:
    names = {tensor.name for tensor in tensors}
    unused = sorted({name for values in results.values() for name in values} - names)
    return [f"the model has not, or never quantizes, {_some(unused, 'column', 'columns')}"] if unused else []


def _some(names: Sequence[str], one: str, many: str) -> str:
    """`3 types (a, b, c)`, the first few by name."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} {one if len(names) == 1 else many} ({shown})"


def _read(path: Path) -> list[list[str]]:
    """The cells of a table whose first column is `QTYPE`. All rows have the same length."""
    lines = read_csv(path, "check sensitivity.import and sensitivity.curve")
    if len(lines) < 2 or lines[0][0].strip().lower() != "qtype" or len(lines[0]) < 2:
        raise QuantmillError(
            "no table of sensitivities",
            path,
            "its first line is QTYPE, then the names of tensors (or group0)",
        )
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(lines[0]):
            what = f"row {number} has {len(line)} cells, not {len(lines[0])}"
            raise QuantmillError(what, path, "give each row as many as the first")
    twice = [line[0] for line in lines if [other[0] for other in lines].count(line[0]) > 1]
    if twice:
        raise QuantmillError(f"the row {twice[0]} is there twice", path, "remove one")
    return [[cell.strip() for cell in line] for line in lines]


def _number(cell: str, path: Path, at: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise QuantmillError(
            f"{cell or 'an empty cell'} at {at} is no number", path, "404 is not measured"
        ) from None
    if not 0 <= value < math.inf:
        raise QuantmillError(
            f"{cell} at {at}: a KL divergence is never negative", path, "404 is not measured"
        )
    return value


def main(args: argparse.Namespace, log: Log) -> None:
    """Write the table of sensitivities of one model from the two files."""
    header = read_source(args.model)
    plain = rules.Recipe("mainline", presets.of_type("q8_0"), "none", ())
    mixture = presets.mixture(header, plain.base, imatrix=False)
    whole = plan.resolve(header, plain, mixture, imatrix=False, where=args.model)
    tensors = [row for row in whole.rows if row.name in mixture.quantizable]
    results, curve = read_results(args.results), read_curve(args.curve)
    try:
        imported = convert(tensors, results, curve)
    except QuantmillError as error:
        raise QuantmillError(str(error), args.results) from None
    report: ImportedSensitivity = {
        "how": "imported",
        "import": args.results.name,
        "curve": args.curve.name,
        "tensors": len(tensors),
        "types": sorted({row.type for row in imported.rows}),
        "measured_at": sorted(results),
        "warnings": imported.warnings,
    }
    write_sensitivity(args.out, imported.rows)
    SENSITIVITY.write(args.report, report)
    log.say(f"{len(imported.rows)} sensitivities of {len(tensors)} tensors from {args.results.name}")
    log.warn(imported.warnings)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--results", type=Path, required=True, help="kld_results.csv")
    arguments.add_argument("--curve", type=Path, required=True, help="kld_results.csv of group0")
    arguments.add_argument("--out", type=Path, required=True, help="sensitivity.tsv")
    arguments.add_argument("--report", type=Path, required=True, help="sensitivity.json")
    command.run(arguments, main)
