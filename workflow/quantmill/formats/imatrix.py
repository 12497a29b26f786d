"""The importance matrix's two file formats, as llama.cpp reads and writes them.

GGUF (tools/imatrix/imatrix.cpp, save_imatrix): `NAME.in_sum2` [columns,
matrices] and `NAME.counts` [1, matrices], f32. Legacy `.dat`
(save_imatrix_legacy), the only one that ik_llama.cpp reads: i32 entries, then
an entry {i32 length, name, i32 calls, i32 values, f32 values: sum / count *
calls}, i32 chunks, i32 length, dataset (files of before 2024 end before the
chunks); little-endian. It does not say how many tokens a call was: such an
imatrix has the context 0, and `TOKENS_A_CALL` where counts are needed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.errors import QuantmillError
from quantmill.files import write_atomically, writing
from quantmill.formats import ggufio

UNDER_SAMPLED: Final = 32
"""Tokens below which what an expert itself has seen tells less of its columns than other experts do."""

TOKENS_A_CALL: Final = 512
"""What a call of a legacy file is taken to be, as in llama.cpp's own conversion; it changes no mean."""

LEAST_ROWS: Final = 16
"""Inputs of fewer rows enter no importance matrix, as in llama-imatrix."""

_NONE: Final = "is no importance matrix, neither llama.cpp's GGUF nor its older .dat"


@dataclass(frozen=True)
class Entry:
    """Σx² of one weight's input: `in_sum2` f32 [matrices, columns], `counts` f32 [matrices] or [1]."""

    in_sum2: NDArray[np.float32]
    counts: NDArray[np.float32]

    def mean(self) -> NDArray[np.float32]:
        """The mean square of each column, f32 [matrices, columns], as llama.cpp's tools take it.

        1 for a matrix without a single row (an expert never seen).
        """
        counts = self.counts[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(counts > 0, self.in_sum2 / counts, np.float32(1))

    def made_up(self) -> Entry:
        """The entry for quantizing: an expert below `UNDER_SAMPLED` tokens is made up to that many.

        With the mean over the tensor's experts, each token counted once; an expert
        never seen has that mean alone.
        """
        few = self.counts < UNDER_SAMPLED
        if len(self.counts) == 1 or not few.any() or not self.counts.any():
            return self
        mean = self.in_sum2.sum(axis=0, dtype=np.float64) / self.counts.sum(dtype=np.float64)
        in_sum2, counts = np.array(self.in_sum2), np.array(self.counts)
        in_sum2[few] += (UNDER_SAMPLED - counts[few, None]) * mean
        counts[few] = UNDER_SAMPLED
        return Entry(in_sum2, counts)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix: `chunks` of `context` tokens of `dataset`, an entry a weight.

    `chunks` and `context` are 0, and `dataset` is empty, where its file does not say.
    """

    dataset: str
    chunks: int
    context: int
    entries: Mapping[str, Entry]

    def made_up(self) -> Imatrix:
        """The same for quantizing: under-sampled experts are made up."""
        return replace(self, entries={name: entry.made_up() for name, entry in self.entries.items()})


def write_gguf(path: Path, imatrix: Imatrix) -> None:
    """Write llama.cpp's GGUF form."""
    kv = {
        "general.type": ggufio.encode_string("imatrix"),
        "imatrix.datasets": _string_array([imatrix.dataset]),
        "imatrix.chunk_count": ggufio.encode_u32(imatrix.chunks),
        "imatrix.chunk_size": ggufio.encode_u32(imatrix.context),
    }
    arrays: list[tuple[str, NDArray[np.float32], tuple[int, ...]]] = []
    for name, entry in sorted(imatrix.entries.items()):
        matrices = len(entry.counts)
        arrays.append((f"{name}.in_sum2", entry.in_sum2, (entry.in_sum2.size // matrices, matrices)))
        arrays.append((f"{name}.counts", entry.counts, (1, matrices)))
    with writing(path) as file:
        file.write(ggufio.serialize(kv, [(name, 0, shape) for name, _, shape in arrays]))
        for _, values, _ in arrays:
            data = np.ascontiguousarray(values, "<f4").tobytes()
            file.write(data + bytes(-len(data) % ggufio.ALIGNMENT))


def write_dat(path: Path, imatrix: Imatrix) -> None:
    """Write the legacy form; an expert never seen is stored as 1, as llama-imatrix does."""
    entries = sorted((name, entry) for name, entry in imatrix.entries.items() if entry.counts.any())
    out = [struct.pack("<i", len(entries))]
    for name, entry in entries:
        calls, values = _legacy(entry, imatrix.context)
        data = name.encode()
        out.append(struct.pack(f"<i{len(data)}sii", len(data), data, calls, values.size))
        out.append(np.ascontiguousarray(values, "<f4").tobytes())
    dataset = imatrix.dataset.encode()
    out.append(struct.pack(f"<ii{len(dataset)}s", imatrix.chunks, len(dataset), dataset))
    write_atomically(path, b"".join(out))


def as_legacy(imatrix: Imatrix) -> Imatrix:
    """The imatrix as it is read from its legacy form.

    ik_llama.cpp divides each value by the calls again (common.cpp,
    load_imatrix of its quantize.cpp), which may move the mean's last bit.
    """
    entries = {}
    for name, entry in imatrix.entries.items():
        if entry.counts.any():
            calls, values = _legacy(entry, imatrix.context)
            entries[name] = Entry(values, np.array([calls], np.float32))
    return Imatrix(imatrix.dataset, imatrix.chunks, imatrix.context, entries)


def _legacy(entry: Entry, context: int) -> tuple[int, NDArray[np.float32]]:
    """The calls and the values of an entry's legacy form; of what was read from that form, as they were."""
    most = entry.counts.max()
    calls = max(-(-int(most) // (context or TOKENS_A_CALL)), 1)
    values = entry.mean() * np.float32(calls)
    if not context:
        as_read = entry.in_sum2 / np.float32(TOKENS_A_CALL)
        values = np.where(entry.counts[:, None] == most, as_read, values)
    return calls, values


def read(path: Path) -> Imatrix:
    """Read either form, distinguished by the file's first bytes. QuantmillError where it is neither."""
    return read_gguf(path) if _is_gguf(path) else read_dat(path)


def facts(path: Path) -> tuple[str, int]:
    """The dataset and the chunks that a file of either form names, without a look at its values."""
    if not _is_gguf(path):
        _, dataset, chunks = _walk_dat(path)
        return dataset, chunks
    header = _gguf_header(path)
    return _origin(header)[:2]


def read_dat(path: Path) -> Imatrix:
    """Read the legacy form: of an entry [1, the columns of all its matrices].

    QuantmillError where it is no importance matrix, or breaks off.
    """
    entries, dataset, chunks = _walk_dat(path)
    scale = np.float32(TOKENS_A_CALL)  # a power of two: no digit is lost
    by_name = {
        name: Entry(values.reshape(1, -1) * scale, np.array([calls], np.float32) * scale)
        for name, (calls, values) in entries.items()
    }
    return Imatrix(dataset, chunks, 0, by_name)


def _walk_dat(path: Path) -> tuple[dict[str, tuple[int, NDArray[np.float32]]], str, int]:
    """Each entry's calls and values, the dataset, and the chunks of a legacy file."""
    size = path.stat().st_size
    data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    count, place = int.from_bytes(data[:4].tobytes(), "little", signed=True), 4
    entries: dict[str, tuple[int, NDArray[np.float32]]] = {}

    def take(length: int) -> NDArray[np.uint8]:
        nonlocal place
        if length < 0 or place + length > size:
            if not entries:
                raise QuantmillError(_NONE, path, "name another file")
            what = f"breaks off after {len(entries)} of {count} entries"
            raise QuantmillError(what, path, "get the file again")
        place += length
        return data[place - length : place]

    def number() -> int:
        return int.from_bytes(take(4).tobytes(), "little", signed=True)

    def text() -> str:
        return take(number()).tobytes().decode("utf-8", errors="replace")

    # An entry takes 12 bytes at least: the first letters of a text promise far more than it has.
    if not 0 < count <= size // 12:
        raise QuantmillError(_NONE, path, "name another file")
    for _ in range(count):
        name = text()
        calls, length = max(number(), 1), number()  # llama-quantize divides by no calls below 1
        entries[name] = calls, take(4 * length).view("<f4")
    dataset, chunks = "", 0
    if place < size:
        chunks, dataset = max(number(), 0), text()
    return entries, dataset, chunks


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise QuantmillError(f"cannot be read ({error.strerror})", path, "check the path") from None


def _gguf_header(path: Path) -> ggufio.Header:
    header = ggufio.read_header(path)
    if header.value("general.type") != "imatrix":
        raise QuantmillError("is a GGUF, but no importance matrix", path, "make it with llama-imatrix")
    return header


def _origin(header: ggufio.Header) -> tuple[str, int, int]:
    """The first dataset (llama-quantize names no other), the chunks and the tokens of a chunk."""
    datasets = header.value("imatrix.datasets") or [""]
    if not isinstance(datasets, list) or not isinstance(datasets[0], str):
        raise QuantmillError("imatrix.datasets is no list of names", header.path, "make the file again")
    chunks, context = (header.number(f"imatrix.chunk_{key}") for key in ("count", "size"))
    return datasets[0], chunks, context


def read_gguf(path: Path) -> Imatrix:
    """Read the GGUF form. QuantmillError where it is no importance matrix."""
    header = _gguf_header(path)
    arrays, data = {}, np.memmap(path, np.uint8, "r")  # one map: each holds a file open
    for tensor in header.tensors:
        columns, rows = (*tensor.shape, 1)[:2]
        if tensor.type != "f32" or not rows * columns:
            raise QuantmillError(f"{tensor.name} is not f32 values", path, "make the file again")
        values = data[tensor.offset : tensor.offset + tensor.bytes].view("<f4")
        arrays[tensor.name] = values.reshape(rows, columns)
    sums = [name.removesuffix(".in_sum2") for name in arrays if name.endswith(".in_sum2")]
    entries = {}
    for name in sums:
        counts = arrays.get(f"{name}.counts")
        if counts is None:
            raise QuantmillError(f"{name} has sums and no counts", path, "make the file again")
        entries[name] = Entry(np.asarray(arrays[f"{name}.in_sum2"]), np.asarray(counts).reshape(-1))
    return Imatrix(*_origin(header), entries)


def _string_array(texts: list[str]) -> ggufio.Value:
    """A GGUF array value (type 9) of strings (type 8)."""
    return 9, struct.pack("<IQ", 8, len(texts)) + b"".join(ggufio.encode_string(text)[1] for text in texts)
