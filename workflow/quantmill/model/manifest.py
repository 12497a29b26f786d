"""The source's tensors and their digests: what every key of the store starts from.

And the grids of types on which the values of some lie already.

A tensor's digest is of its data alone, so that the same tensor in another file has
the same units in the store. They may have been noted when the workflow was read.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.manifest import ManifestRow, write_manifest
from quantmill.formats.source import MODEL, Model
from quantmill.formats.types import is_quantized
from quantmill.grid import find
from quantmill.model.digests import Memo
from quantmill.model.header import hyperparameters
from quantmill.model.roles import layer_of, role_of
from quantmill.progress import Log

_NONE: Mapping[str, str] = {}


def digests(header: Header, memo: Memo, threads: int, log: Log) -> tuple[dict[str, str], list[str]]:
    """(sha256 (hex) of each tensor's data by name, sha256 of each shard's bytes).

    QuantmillError for a tensor with NaN or infinity.
    """
    tensors: dict[str, str] = {}
    shards = memo.read(header.shards, threads, log, tensors=True)
    for path, shard in zip(header.shards, shards, strict=True):
        if shard.broken:
            cure = "the file is damaged: download it again, or convert it anew"
            raise QuantmillError(shard.broken, path, cure)
        tensors |= shard.tensors or {}
    return tensors, [shard.sha256 for shard in shards]


def rows(header: Header, sha256: dict[str, str]) -> list[ManifestRow]:
    """The manifest's rows, in the source's order."""
    return [
        ManifestRow(t.name, role_of(t.name), layer_of(t.name), t.shape, t.type, t.bytes, sha256[t.name])
        for t in header.tensors
    ]


def facts(header: Header, files: list[str], size: int, grids: Mapping[str, str] = _NONE) -> Model:
    """What the card and the recipes say of the model: `model.json` of docs/files.md.

    `files` are the sha256s of the shards, `size` their bytes together, `grids` are by tensor.
    """
    arch = header.architecture
    on_grids = {kind: list(grids.values()).count(kind) for kind in sorted(set(grids.values()))}
    quantized = sorted({t.type for t in header.tensors if len(t.shape) > 1 and is_quantized(t.type)})
    made: Model = {
        "name": header.text("general.name"),
        "architecture": arch,
        "layers": header.layers,
        "context_length": _optional(header, f"{arch}.context_length"),
        "embedding_length": _optional(header, f"{arch}.embedding_length"),
        "experts": header.number(f"{arch}.expert_count"),
        "experts_used": header.number(f"{arch}.expert_used_count"),
        "parameters": sum(t.elements for t in header.tensors),
        "tensors": len(header.tensors),
        "bytes": size,
        "sha256": files[0] if len(files) == 1 else hashlib.sha256("\n".join(files).encode()).hexdigest(),
        "types": dict(sorted(Counter(t.type for t in header.tensors).items())),
        "quantized": bool(quantized),
        "quantized_types": quantized,
        "tokenizer": header.text("tokenizer.ggml.model"),
        "chat_template": header.text("tokenizer.chat_template"),
        "licence": header.text("general.license"),
        "metadata_bytes": header.tensors[0].offset if header.tensors else size,
        "hyperparameters": hyperparameters(header),
    }
    if on_grids:
        made["grids"] = on_grids
    return made


def _optional(header: Header, key: str) -> int | None:
    return header.number(key) if key in header.kv else None


def main(args: argparse.Namespace, log: Log) -> None:
    """List one source."""
    if args.model.suffix == ".tsv":
        what = "a manifest has no tensors' data"
        raise QuantmillError(what, args.model, "a plan can be made from it, no more")
    header = read_header(args.model)
    size = sum(shard.stat().st_size for shard in header.shards)
    tensors, files = digests(header, Memo.of_stage(), args.threads, log)
    grids = find.grids(header, args.threads)
    write_manifest(args.manifest, rows(header, tensors), grids)
    about = facts(header, files, size, grids)
    MODEL.write(args.facts, about)
    log.say(f"{len(header.tensors)} tensors, {size:,} bytes")
    for kind, count in about.get("grids", {}).items():
        log.say(f"{count} of its matrices lie on the grid of {kind}: `keep: grid` in a recipe keeps them")
    strange = [tensor.name for tensor in header.tensors if role_of(tensor.name) == "unknown"]
    if strange:
        log.say(f"warning: {len(strange)} tensors have no known role: {', '.join(strange[:8])}")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF (its first shard)")
    arguments.add_argument("--manifest", type=Path, required=True, help="the table of tensors")
    arguments.add_argument("--facts", type=Path, required=True, help="facts about the model, JSON")
    command.run(arguments, main)
