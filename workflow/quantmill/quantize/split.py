"""A quantized model in several files, as llama.cpp names and loads them.

The parts are those of llama-gguf-split --split-max-size (tools/gguf-split/gguf-split.cpp):
tensors in the file's own order, a new part where the next one would take the
tensors of the present one over the size; the first part has the metadata, the
others nothing but their number. One thing differs: a tensor which is larger by
itself is a part of its own, where the tool ends if it is the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Value, padded, serialize
from quantmill.formats.plan import PlanRow
from quantmill.formats.types import known
from quantmill.model.header import split_kv, split_name

MOST: Final = (1 << 16) - 1
"""Files of one model: `split.count` is a u16."""


def parts(rows: Sequence[PlanRow], most: int) -> list[list[PlanRow]]:
    """The rows of each part: at most `most` bytes of tensors with their padding, metadata not counted."""
    files: list[list[PlanRow]] = [[]]
    filled = 0
    for row in rows:
        size = padded(row.bytes)
        if files[-1] and filled + size > most:
            files.append([])
            filled = 0
        files[-1].append(row)
        filled += size
    return files


class File(NamedTuple):
    """A file to be written: its name, its whole header, how many tensors follow, and the header by which
    measurements know it.
    """

    name: str
    header: bytes
    tensors: int
    measured: bytes


def files(
    stem: str,
    kv: Mapping[str, Value],
    rows: Sequence[PlanRow],
    most: int | None,
    measured: Mapping[str, Value] | None = None,
    *,
    header_alone: bool = False,
) -> list[File]:
    """The files of a model; one that needs a single file, or has no `most`, is not split, nor called so.

    `measured` are the key-value pairs by which measurements know the model, where they are others. With
    `header_alone` the first file has them and no tensor (llama-gguf-split --no-tensor-first-split).
    QuantmillError where they would be more than can be counted.
    """
    known = kv if measured is None else measured
    groups = [list(rows)] if most is None else parts(rows, most)
    groups = [[], *groups] if header_alone else groups
    count = len(groups)
    if count > MOST:
        what = f"needs {count:,} files, of which llama.cpp knows {MOST:,} at most"
        raise QuantmillError(what, stem, "give `split` a larger `max`")
    if count == 1:
        return [File(f"{stem}.gguf", header(kv, rows), len(rows), header(known, rows))]
    made = []
    for number, group in enumerate(groups):
        heads = [
            header({**(pairs if number == 0 else {}), **split_kv(number, count, len(rows))}, group)
            for pairs in (kv, known)
        ]
        made.append(File(split_name(stem, number, count), heads[0], len(group), heads[1]))
    return made


def header(kv: Mapping[str, Value], rows: Sequence[PlanRow]) -> bytes:
    """The header of a file with these tensors."""
    return serialize(kv, [(row.name, known(row.type).id, row.shape) for row in rows])
