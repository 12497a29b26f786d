"""The report of a written file, and what its metadata say of the importance matrix."""

from __future__ import annotations

from quantmill.engine import library
from quantmill.formats import output
from quantmill.formats.imatrix import Imatrix
from quantmill.formats.publication import Facts
from quantmill.formats.settings import ImatrixFile
from quantmill.quantize.stream import Written
from quantmill.spec import digest


def facts_of(written: list[Written], *, tensors: int) -> Facts:
    """The report of a file, or of the parts of one. The sha256 of several is that of theirs, joined by
    newlines, as of a split source.
    """
    parts = [one.part for one in written]
    sha256 = _joined([part["sha256"] for part in parts])
    measured_as = _joined([one.measured for one in written])
    return {
        "file": parts[0]["file"],
        "bytes": sum(part["bytes"] for part in parts),
        "sha256": sha256,
        "tensors": tensors,
        **({"measured_as": measured_as} if measured_as != sha256 else {}),  # type: ignore[typeddict-item]
        **library.marked(),
    }


def _joined(digests: list[str]) -> str:
    return digests[0] if len(digests) == 1 else digest("\n".join(digests))


def imatrix_facts(config: ImatrixFile | None, imatrix: Imatrix | None) -> output.ImatrixFacts | None:
    """What the file's metadata say of the imatrix, as llama-quantize writes it; a bare name, no path."""
    if config is None or imatrix is None:
        return None
    return {
        "file": config["file"],
        "dataset": imatrix.dataset,
        "entries": len(imatrix.entries),
        "chunks": imatrix.chunks,
    }
