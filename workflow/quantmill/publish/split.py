"""Files too large for a repository, split as llama.cpp does: a part is a header and a byte range of the file.

The stage names the parts and computes their digests, so that the card can name
them as they are downloaded. They are written only while they are uploaded.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, padded, read_header
from quantmill.formats.plan import PlanRow
from quantmill.formats.publication import FACTS, PARTS, Facts, Part, Parts, files_of
from quantmill.formats.settings import Split
from quantmill.progress import BYTES, Log
from quantmill.publish.files import ByteRange, Item
from quantmill.quantize import split


def described(facts: Mapping[str, Facts], folder: Path, most: int, log: Log) -> Parts:
    """The parts of the files of more than `most` bytes; none is larger than that, its header included.

    `facts` are what `quantize.write` says of each recipe's file in `folder`. QuantmillError where a
    file cannot be split: it is a part of a model already, or a tensor is larger by itself.
    """
    parts: Parts = {}
    for recipe, file in facts.items():
        for whole in files_of(file):
            if whole["bytes"] <= most:
                continue
            path = folder / whole["file"]
            parts[recipe] = []
            with log.progress(f"sha256 of the parts of {path.name}", path.stat().st_size, BYTES) as p:
                for name, part in _parts(path, most):
                    entry: Part = {"file": f"{path.stem}/{name}", "bytes": part.size, "sha256": _sha256(part)}
                    parts[recipe].append(entry)
                    p.add(part.size)
    return parts


def split_items(items: Iterable[Item], parts: Parts, most: int) -> list[Item]:
    """The items, each GGUF of more than `most` bytes as its `parts`; nothing is written or read of them.

    QuantmillError where the parts are not those of the file.
    """
    known = {part["file"]: part for described in parts.values() for part in described}
    result: list[Item] = []
    for item in items:
        if item.bytes <= most or not isinstance(item.content, Path) or item.content.suffix != ".gguf":
            result.append(item)
            continue
        for name, content in _parts(item.content, most):
            path = f"{Path(item.path).stem}/{name}"
            if (part := known.get(path)) is None or part["bytes"] != content.size:
                raise QuantmillError("is split otherwise than in parts.json", item.path, "delete parts.json")
            result.append(Item(path, content, content.size, part["sha256"]))
    return result


def _parts(path: Path, most: int) -> Iterator[tuple[str, ByteRange]]:
    """The parts by name. What `split` counts is the tensors alone: the longest header goes off before."""
    header = read_header(path)
    if header.number("split.count", 1) > 1:
        raise QuantmillError(f"a part of a model, and larger than {most:,} bytes", path, _CURE)
    rows = [PlanRow(t.name, "", -1, t.shape, t.type, t.type, t.bytes, "") for t in header.tensors]
    room = most - len(split.header(header.kv, rows)) - _SPLIT_KEYS
    largest = max(header.tensors, key=lambda tensor: tensor.bytes)
    if padded(largest.bytes) > room:
        raise QuantmillError(f"{largest.name} alone has {largest.bytes:,} bytes", path, _CURE)
    first = 0
    for file in split.files(path.stem, header.kv, rows, room):
        yield file.name, _byte_range(header, file, first)
        first += file.tensors


def _byte_range(header: Header, file: split.File, first: int) -> ByteRange:
    """A part's header, and where its tensors stand in the whole file: side by side, padded alike."""
    tensors = header.tensors[first : first + file.tensors]
    start, last = tensors[0].offset, tensors[-1]
    return ByteRange(file.header, header.path, start, last.offset + padded(last.bytes) - start)


def _sha256(part: ByteRange) -> str:
    digest = hashlib.sha256()
    for block in part.blocks():
        digest.update(block)
    return digest.hexdigest()


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `publish.split`."""
    config: Split = args.spec["config"]
    folder = args.results / "gguf"
    facts = {name: FACTS.read(folder / f"{config['model']}-{name}.json") for name in config["recipes"]}
    PARTS.write(args.out, described(facts, folder, config["split"], log))


_CURE = "give `split` a larger size under publish"
_SPLIT_KEYS = 1024  # the three keys that say which part it is take less


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--results", type=Path, required=True, help="folder of the model's results")
    arguments.add_argument("--out", type=Path, required=True, help="parts.json")
    command.run(arguments, main)
