"""The source's tensors and their digests: what every key of the store starts from.

One pass over the data, in which one thread hashes the file and another the
tensors (hashlib releases the GIL). A tensor's digest is of its data alone, so
that the same tensor in another file has the same units in the store. The same
pass looks for NaN and infinity, which quantizers turn into zeros or noise.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, Tensor, read_header
from quantmill.formats.manifest import ManifestRow, write_manifest
from quantmill.formats.source import MODEL, Model
from quantmill.formats.types import is_quantized, known
from quantmill.model.header import hyperparameters
from quantmill.model.roles import layer_of, role_of
from quantmill.progress import BYTES, Log

_BLOCK = 4 << 20

# A float's bytes, and the bits of infinity. Larger bits, without the sign, are NaN.
_INFINITY: Final = {
    "f64": (8, 0x7FF0 << 48),
    "f32": (4, 0x7F80 << 16),
    "f16": (2, 0x7C00),
    "bf16": (2, 0x7F80),
}
# Where a block has its f16 scales, in bytes from its start: ggml-common.h.
_F16_SCALES: Final = """
    0      q4_0 q5_0 q8_0 q1_0 q2_0 iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s iq1_s iq4_nl iq4_xs
    0,2    q4_1 q5_1 q4_K q5_K
    80,82  q2_K
    108    q3_K
    208    q6_K
    52     tq1_0
    64     tq2_0
"""
_SCALES: Final = {
    type_name: tuple(map(int, starts.split(",")))
    for starts, *type_names in map(str.split, _F16_SCALES.strip().split("\n"))
    for type_name in type_names
}


def non_finite(type_name: str, data: bytes) -> NDArray[np.int64]:
    """Which elements of whole blocks of a type are NaN or infinite; of a quantized type which blocks are,
    by their scales. By bits alone: two maxima, unless there is one.
    """
    size = known(type_name).block_bytes
    if type_name in _INFINITY:
        return _beyond(type_name, data, 0, size)
    if type_name in _SCALES:
        places = [_beyond("f16", data, place, size) for place in _SCALES[type_name]]
        return np.unique(np.concatenate(places))
    if type_name == "mxfp4":  # an exponent, whose largest is NaN
        return np.flatnonzero(np.frombuffer(data, np.uint8)[::size] == 0xFF)
    if type_name == "iq1_m":  # an f16 whose quarters are the upper bits of four words
        words = np.frombuffer(data, "<u2").reshape(-1, size // 2)[:, -4:] >> 12
        scales = (words << np.array([0, 4, 8, 12], np.uint16)).sum(axis=1, dtype=np.uint16)
        return _beyond("f16", scales.tobytes(), 0, 2)
    return np.empty(0, np.int64)


def _beyond(kind: str, data: bytes, place: int, step: int) -> NDArray[np.int64]:
    """Which of the floats at `place`, `place + step`, ... are NaN or infinite."""
    width, infinity = _INFINITY[kind]
    bits = np.ndarray((len(data) // step,), f"<u{width}", data, place, (step,))
    negative = infinity | 1 << (8 * width - 1)
    if not bits.size or (bits.view(f"<i{width}").max() < infinity and bits.max() < negative):
        return np.empty(0, np.int64)
    return np.flatnonzero(bits & bits.dtype.type(infinity) == infinity)


def digests(header: Header, threads: int, done: Callable[[int], None]) -> tuple[dict[str, str], list[str]]:
    """(sha256 (hex) of each tensor's data by name, sha256 of each shard's bytes).

    `done` is called with the number of bytes read. QuantmillError for a tensor with NaN or infinity.
    """
    tensors, files = {}, []
    with ThreadPoolExecutor(min(2, threads)) as pool:
        for number, shard in enumerate(header.shards):
            whole = hashlib.sha256()
            with shard.open("rb", buffering=0) as file:
                for tensor, size in _parts(header, number):
                    digest, broken = hashlib.sha256(), _Broken(tensor)
                    for block in _blocks(file, size, broken.unit):
                        work = [pool.submit(each.update, block) for each in (whole, digest)]
                        broken.look(block)
                        for future in work:
                            future.result()
                        done(len(block))
                    if tensor is not None:
                        broken.refuse(header.shards[number])
                        tensors[tensor.name] = digest.hexdigest()
            files.append(whole.hexdigest())
    return tensors, files


def rows(header: Header, sha256: dict[str, str]) -> list[ManifestRow]:
    """The manifest's rows, in the source's order."""
    return [
        ManifestRow(t.name, role_of(t.name), layer_of(t.name), t.shape, t.type, t.bytes, sha256[t.name])
        for t in header.tensors
    ]


def facts(header: Header, files: list[str], size: int) -> Model:
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


class _Broken:
    """Looks for NaN and infinity in a tensor, a part at a time; None: what lies between tensors."""

    def __init__(self, tensor: Tensor | None) -> None:
        self._tensor = tensor
        self._type = known(tensor.type) if tensor is not None else None
        self.unit = self._type.block_bytes if self._type else 1
        self._seen = self._count = 0
        self._first = -1

    def look(self, block: bytes) -> None:
        """Look at the next bytes, whole blocks of its type."""
        if self._type is None:
            return
        places = non_finite(self._type.name, block)
        if places.size and self._first < 0:
            self._first = self._seen + int(places[0])
        self._count += places.size
        self._seen += len(block) // self.unit

    def refuse(self, path: Path) -> None:
        """QuantmillError where there was something."""
        if self._count and self._tensor is not None:
            what = "values" if self._tensor.type in _INFINITY else "blocks"
            raise QuantmillError(
                f"{self._count:,} of the {self._seen:,} {what} of {self._tensor.name} are NaN or infinite,"
                f" the first at {self._first:,}",
                path,
                "the file is damaged: download it again, or convert it anew",
            )


def _parts(header: Header, shard: int) -> Iterator[tuple[Tensor | None, int]]:
    """(tensor, bytes) of a file from its start to its end; None for what lies between tensors."""
    at = 0
    for tensor in header.tensors:
        if tensor.shard == shard:
            yield None, tensor.offset - at
            yield tensor, tensor.bytes
            at = tensor.offset + tensor.bytes
    yield None, header.shards[shard].stat().st_size - at


def _blocks(file: IO[bytes], size: int, unit: int) -> Iterator[bytes]:
    """The next `size` bytes, each time a multiple of `unit`."""
    most = _BLOCK // unit * unit
    while size > 0:
        block = file.read(min(most, size))
        while block and len(block) % unit:  # a read may return fewer bytes than requested
            more = file.read(unit - len(block) % unit)
            block = block + more if more else b""
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
    with log.progress("hashing", size, BYTES) as progress:
        tensors, files = digests(header, args.threads, progress.add)
    write_manifest(args.manifest, rows(header, tensors))
    MODEL.write(args.facts, facts(header, files, size))
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
