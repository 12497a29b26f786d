"""The source's tensors and their digests: what every key of the store starts from.

One pass over the data, in which one thread hashes the file and another the
tensors (hashlib releases the GIL). A tensor's digest is of its data alone, so
that the same tensor in another file has the same units in the store.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.files import write_json, write_table
from quantmill.model.ggufio import Header, Tensor, read_header
from quantmill.model.header import hyperparameters
from quantmill.model.roles import layer_of, role_of
from quantmill.model.types import is_quantized
from quantmill.progress import Log

COLUMNS = ["name", "role", "layer", "ne0", "ne1", "ne2", "ne3", "type", "bytes", "sha256"]

_BLOCK = 4 << 20


def digests(header: Header, threads: int, done: Callable[[int], None]) -> tuple[dict[str, str], list[str]]:
    """(sha256 (hex) of each tensor's data by name, sha256 of each shard's bytes).

    `done` is told the bytes that have been read.
    """
    tensors, files = {}, []
    with ThreadPoolExecutor(min(2, threads)) as pool:
        for number, shard in enumerate(header.shards):
            whole = hashlib.sha256()
            with shard.open("rb", buffering=0) as file:
                for tensor, size in _parts(header, number):
                    digest = hashlib.sha256()
                    for block in _blocks(file, size):
                        hashing = [pool.submit(each.update, block) for each in (whole, digest)]
                        for future in hashing:
                            future.result()
                        done(len(block))
                    if tensor is not None:
                        tensors[tensor.name] = digest.hexdigest()
            files.append(whole.hexdigest())
    return tensors, files


def rows(header: Header, sha256: dict[str, str]) -> list[list[Any]]:
    """The manifest's rows, in the source's order."""
    return [
        [t.name, role_of(t.name), layer_of(t.name), *(*t.shape, 1, 1, 1)[:4], t.type, t.bytes, sha256[t.name]]
        for t in header.tensors
    ]


def facts(header: Header, files: list[str], size: int) -> dict[str, Any]:
    """What the card and the recipes say of the model: `model.json` of docs/files.md.

    `files` are the sha256s of the shards, `size` their bytes together.
    """
    arch = header.architecture
    quantized = sorted({t.type for t in header.tensors if len(t.shape) > 1 and is_quantized(t.type)})
    return {
        "name": header.value("general.name"),
        "architecture": arch,
        "layers": header.layers,
        "context_length": header.value(f"{arch}.context_length"),
        "embedding_length": header.value(f"{arch}.embedding_length"),
        "experts": header.value(f"{arch}.expert_count", 0),
        "experts_used": header.value(f"{arch}.expert_used_count", 0),
        "parameters": sum(t.elements for t in header.tensors),
        "tensors": len(header.tensors),
        "bytes": size,
        "sha256": files[0] if len(files) == 1 else hashlib.sha256("\n".join(files).encode()).hexdigest(),
        "types": dict(sorted(Counter(t.type for t in header.tensors).items())),
        "quantized": bool(quantized),
        "quantized_types": quantized,
        "tokenizer": header.value("tokenizer.ggml.model"),
        "chat_template": header.value("tokenizer.chat_template"),
        "licence": header.value("general.license"),
        "metadata_bytes": header.tensors[0].offset if header.tensors else size,
        "hyperparameters": hyperparameters(header),
    }


def _parts(header: Header, shard: int) -> Iterator[tuple[Tensor | None, int]]:
    """(tensor, bytes) of a file from its start to its end; None for what lies between tensors."""
    at = 0
    for tensor in header.tensors:
        if tensor.shard == shard:
            yield None, tensor.offset - at
            yield tensor, tensor.bytes
            at = tensor.offset + tensor.bytes
    yield None, header.shards[shard].stat().st_size - at


def _blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0:
        block = file.read(min(_BLOCK, size))
        if not block:
            raise QuantmillError(f"{size:,} bytes are missing", file.name, "it changed while it was read")
        size -= len(block)
        yield block


def main(args: argparse.Namespace, log: Log) -> None:
    """List one source."""
    if args.model.suffix == ".tsv":
        what = "a manifest has no tensors' data"
        raise QuantmillError(what, args.model, "a plan can be made from it, no more")
    header = read_header(args.model)
    size = sum(shard.stat().st_size for shard in header.shards)
    with log.progress("hashing", round(size / 2**20, 1), "MiB") as progress:
        tensors, files = digests(header, args.threads, lambda count: progress.add(count / 2**20))
    write_table(args.manifest, COLUMNS, rows(header, tensors))
    write_json(args.facts, facts(header, files, size))
    log.say(f"{len(header.tensors)} tensors, {size:,} bytes")
    strange = [tensor.name for tensor in header.tensors if role_of(tensor.name) == "unknown"]
    if strange:
        log.say(f"warning: {len(strange)} tensors have no known role: {', '.join(strange[:8])}")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF (its first shard)")
    arguments.add_argument("--manifest", type=Path, required=True, help="the table of tensors")
    arguments.add_argument("--facts", type=Path, required=True, help="facts about the model, JSON")
    command.run(arguments, main)
