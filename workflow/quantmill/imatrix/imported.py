"""An importance matrix that somebody published, checked against the model and brought into both forms."""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.formats import imatrix as formats
from quantmill.formats.ggufio import Header, Tensor
from quantmill.formats.imatrix import Entry, Imatrix
from quantmill.formats.importance import IMATRIX
from quantmill.formats.types import EXEMPT
from quantmill.imatrix import coverage
from quantmill.model import roles
from quantmill.model.header import read_source
from quantmill.progress import Log

_OF_ANOTHER = "it is of another model"
_CURE = "name the imatrix of this one, or have it measured: imatrix: {corpus: ...}"


def checked(imatrix: Imatrix, header: Header, where: Path) -> tuple[Imatrix, list[str]]:
    """The imatrix with the model's own weights alone, each [matrices, columns] with its counts; warnings.

    Left out, and warned of, are entries of tensors that the model lacks and entries
    without a value. An expert whose values are all zero counts as never seen.
    QuantmillError, naming the first tensor, where a value is not finite or negative,
    and where the imatrix is of another model: another width, other experts, an entry
    of a layer that the model lacks, or none of one that it has.
    """
    for name, entry in imatrix.entries.items():
        _refuse_broken(name, entry, where)
    entries, empty = {}, []
    for tensor in header.tensors:
        if tensor.name in imatrix.entries:
            own = _of_tensor(imatrix.entries[tensor.name], tensor, where)
            if own is not None and own.counts.any():
                entries[tensor.name] = own
            else:
                empty.append(tensor.name)
    extra = sorted(imatrix.entries.keys() - entries.keys() - set(empty))
    _refuse_foreign(extra, header, where)
    made = replace(imatrix, entries=entries)
    _refuse_missing(made, header, where)
    warnings = []
    if extra:
        what = f"{where.name} has {len(extra)} entries of tensors that the model lacks"
        warnings.append(f"{what} ({coverage.shown(extra)}): they are left out")
    if empty:
        what = f"{where.name} has {len(empty)} entries without a value that tells anything"
        warnings.append(f"{what} ({coverage.shown(empty)}): they count as missing")
    return made, warnings


def _refuse_broken(name: str, entry: Entry, where: Path) -> None:
    rows, counts = len(entry.in_sum2), len(entry.counts)
    if counts not in (1, rows):
        raise QuantmillError(f"{name} has {counts} counts of {rows} sums", where, "get the file again")
    for values in (entry.in_sum2, entry.counts):
        # of NaN neither comparison holds
        if not (values.min(initial=0) >= 0 and values.max(initial=0) < np.inf):
            what = f"{name} has values that are negative or not finite"
            raise QuantmillError(what, where, "get the file again, or another one")


def _of_tensor(entry: Entry, tensor: Tensor, where: Path) -> Entry | None:
    """The entry [matrices, columns], counts [matrices]; None where llama.cpp has no use for it."""
    columns, matrices = tensor.shape[0], prod(tensor.shape[2:])
    rows, width = entry.in_sum2.shape
    # The legacy form has the values of all experts in a row, and so have conversions of it.
    whole = rows == 1 and width == columns * matrices
    if not whole and (width, rows) != (columns, matrices):
        if tensor.name in EXEMPT:
            return None
        if width == columns:
            what = f"has {tensor.name} of {rows} experts, and the model has {matrices}"
        else:
            what = f"has {rows * width} values of {tensor.name}, and the model {columns * matrices}"
        raise QuantmillError(f"{what}: {_OF_ANOTHER}", where, _CURE)
    sums: NDArray[np.float32] = entry.in_sum2.reshape(matrices, columns)
    counts = np.broadcast_to(entry.counts, matrices)
    return Entry(sums, np.where(sums.any(axis=1), counts, np.float32(0)))


def _refuse_foreign(extra: list[str], header: Header, where: Path) -> None:
    beyond = [name for name in extra if roles.layer_of(name) >= header.layers]
    if beyond:
        what = f"has an entry of {beyond[0]}, and the model has {header.layers} layers"
        raise QuantmillError(f"{what}: {_OF_ANOTHER}", where, _CURE)


def _refuse_missing(imatrix: Imatrix, header: Header, where: Path) -> None:
    """A layer that is evaluated and has not one entry tells that the imatrix is of a smaller model."""
    evaluated = header.evaluated
    known = {roles.layer_of(name) for name in imatrix.entries}
    for name in coverage.unseen(imatrix, header):
        layer = roles.layer_of(name)
        if layer not in known and layer < evaluated:
            what = f"has no entry of {name}, nor of any other tensor of layer {layer}"
            raise QuantmillError(f"{what}: {_OF_ANOTHER}", where, _CURE)


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `imatrix.imported`."""
    header = read_source(args.model)
    imatrix, warnings = checked(formats.read(args.file), header, args.file)
    formats.write_gguf(args.gguf, imatrix)
    formats.write_dat(args.dat, imatrix)
    report = coverage.report(imatrix, header, f"{args.file.name} has no entry of them")
    report["imported"] = {
        "file": args.file.name,
        "sha256": args.spec["from"]["imatrix"],
        "dataset": imatrix.dataset or None,
    }
    report["chunks"] = report["chunks"] or None  # 0 where the file does not give it
    report["context"] = report["context"] or None
    report["tokens"] = report["tokens"] or None
    report["warnings"][:0] = warnings
    IMATRIX.write(args.report, report)
    log.say(f"{len(imatrix.entries)} entries from {args.file.name}")
    log.warn(report["warnings"])


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--file", type=Path, required=True, help="the published imatrix, GGUF or .dat")
    arguments.add_argument("--gguf", type=Path, required=True, help="imatrix.gguf")
    arguments.add_argument("--dat", type=Path, required=True, help="imatrix.dat, the legacy form")
    arguments.add_argument("--report", type=Path, required=True, help="imatrix.json")
    command.run(arguments, main)
