"""GGUF headers: a fast, strict reader, and a writer that makes llama-quantize's own bytes.

gguf-py's reader makes a numpy view of every string of the vocabulary and takes
3 s for SmolLM2; most stages need the tensor table alone. Here each value is
found, kept as the bytes it has in the file, and decoded when asked for. Tensor
data is never read. Format: docs/gguf.md of ggml, checked as strictly as
`gguf_init_from_file` of llama.cpp does.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

from quantmill.errors import QuantmillError
from quantmill.formats.types import BY_ID, IK_TYPES, GgmlType, tensor_bytes

Value = tuple[int, bytes]
"""A value as in the file: its GGUF type and its bytes (of an array: element type, count, elements)."""

ALIGNMENT: Final = 32
U32, STRING, ARRAY = 4, 8, 9

_OF_EITHER_ENGINE: Final = BY_ID | {kind.id: kind for kind in IK_TYPES.values()}
_SCALARS: Final = dict(zip((*range(8), 10, 11, 12), [f"<{code}" for code in "BbHhIif?Qqd"], strict=True))
_ANEW: Final = "the file is damaged: download it again, or convert the model anew"
_MAX_NAME = 64
_MAX_DIMENSIONS = 4
_LEAST_KV_BYTES = 8 + 1 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8
_SHARD_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class Tensor(NamedTuple):
    """A tensor of a GGUF: `shape` has ne0 (the row's width) first; `offset` is from its shard's start."""

    name: str
    type: str
    type_id: int
    shape: tuple[int, ...]
    bytes: int
    shard: int
    offset: int

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """All of a model but its tensors' data; the key-value pairs of a split model are its first shard's."""

    path: Path
    shards: tuple[Path, ...]
    tensors: tuple[Tensor, ...]
    kv: Mapping[str, Value] = field(repr=False)
    alignment: int = ALIGNMENT
    data: str = "whole"  # how much of the tensors' data is there: whole, part, or none (a header alone)

    def value(self, key: str, default: Any = None) -> Any:
        """The key's value as plain Python (arrays as lists), decoded anew at each call."""
        return decode(self.kv[key]) if key in self.kv else default

    def text(self, key: str) -> str | None:
        """The key's value, a string; None where the file has none. QuantmillError for another type."""
        value = self.value(key)
        if value is None or isinstance(value, str):
            return value
        raise self._refused(key, "text")

    def number(self, key: str, default: int = 0) -> int:
        """The same of a whole number of 0 or more."""
        value = self.value(key, default)
        if type(value) is int and value >= 0:
            return value
        raise self._refused(key, "a whole number of 0 or more")

    def numbers(self, key: str, default: int = 0) -> int | list[int]:
        """The same of one for all layers, or one for each."""
        value = self.value(key)
        if not isinstance(value, list):
            return self.number(key, default)
        if all(isinstance(one, int) and one >= 0 for one in value):
            return value
        raise self._refused(key, "a list of whole numbers of 0 or more")

    def _refused(self, key: str, expected: str) -> QuantmillError:
        what = f"{key} of the metadata is {repr(self.value(key))[:40]}, not {expected}"
        return QuantmillError(what, self.path, _ANEW)

    @property
    def architecture(self) -> str:
        """`general.architecture`, e.g. `qwen35moe`; empty where the file has none."""
        return self.text("general.architecture") or ""

    @property
    def layers(self) -> int:
        """`{architecture}.block_count`, 0 where the file has none."""
        return self.number(f"{self.architecture}.block_count")

    @property
    def evaluated(self) -> int:
        """The layers that are evaluated: without those of multi-token prediction (MTP), which come last."""
        return self.layers - self.number(f"{self.architecture}.nextn_predict_layers")

    @property
    def has_mtp(self) -> bool:
        """Whether it has layers of multi-token prediction beside others."""
        return 0 < self.evaluated < self.layers


def read_header(path: Path, *, data: bool = True) -> Header:
    """The header of a GGUF file, or of a split model given by its first shard.

    With `data=False` the file may end before its data do, and have types of
    ik_llama.cpp alone. Raises QuantmillError for whatever is no sound GGUF: wrong
    magic or version, absurd counts, broken values, unknown types, missing data.
    """
    kv, tensors, alignment, held = _read_file(path, 0, data)
    header = Header(path, (path,), tuple(tensors), kv, alignment, held)
    count = header.number("split.count", 1)
    if count == 1:
        return header
    shards = _shard_paths(path, header, count)
    for number, shard in enumerate(shards[1:], start=1):
        if not shard.exists():
            raise QuantmillError(f"shard {shard.name} is missing", path, "put all shards in one folder")
        shard_kv, more, _, more_held = _read_file(shard, number, data)
        held = held if more_held == held else "part"
        if any(
            key not in shard_kv or decode(shard_kv[key]) != want
            for key, want in (("split.no", number), ("split.count", count))
        ):
            raise QuantmillError(f"is not shard {number + 1} of {count}", shard, "download it again")
        tensors += more
    _refuse_duplicates(path, [tensor.name for tensor in tensors])
    expected = header.number("split.tensors.count", len(tensors))
    if expected != len(tensors):
        what = f"the shards hold {len(tensors)} tensors, not {expected}"
        raise QuantmillError(what, path, "download them again")
    return Header(path, shards, tuple(tensors), kv, alignment, held)


def read_shard(path: Path) -> tuple[Tensor, ...]:
    """The tensors that lie in one file, the whole model or any part of a split one.

    Raises QuantmillError as `read_header` does.
    """
    return tuple(_read_file(path, 0, True)[1])


def serialize(
    kv: Mapping[str, Value], tensors: Iterable[tuple[str, int, tuple[int, ...]]], alignment: int = ALIGNMENT
) -> bytes:
    """A whole GGUF v3 header, padded to the alignment: the tensors' data follow in this order.

    `tensors` are (name, type id, shape); each tensor's data is to be padded to
    the alignment too. The bytes are those of `gguf_get_meta_data`.
    """
    listed = list(tensors)
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(listed), len(kv))]
    for key, (value_type, raw) in kv.items():
        parts += (_string(key), _U32.pack(value_type), raw)
    offset = 0
    for name, type_id, shape in listed:
        dimensions = max((i for i, n in enumerate(shape, 1) if n != 1), default=1)  # as ggml_n_dims
        parts += (
            _string(name),
            struct.pack(f"<I{dimensions}QIQ", dimensions, *shape[:dimensions], type_id, offset),
        )
        offset += padded(tensor_bytes(_OF_EITHER_ENGINE[type_id].name, shape), alignment)
    size = sum(map(len, parts))
    parts.append(bytes(padded(size, alignment) - size))
    return b"".join(parts)


def padded(size: int, alignment: int = ALIGNMENT) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def encode_u32(value: int) -> Value:
    """A u32 as in a file."""
    return U32, _U32.pack(value)


def encode_string(text: str) -> Value:
    """A string as in a file."""
    return STRING, _string(text)


def decode(value: Value) -> Any:
    """A value as plain Python: bool, int, float, str, or a list of these."""
    value_type, raw = value
    if value_type == STRING:
        return raw[8:].decode(errors="replace")
    if value_type != ARRAY:
        return struct.unpack(_SCALARS[value_type], raw)[0]
    element, count = struct.unpack_from("<IQ", raw)
    if element != STRING:
        code = _SCALARS[element][1]
        return list(struct.unpack_from(f"<{count}{code}", raw, 12))
    texts, at = [], 12
    for _ in range(count):
        end = at + 8 + _U64.unpack_from(raw, at)[0]
        texts.append(raw[at + 8 : end].decode(errors="replace"))
        at = end
    return texts


def _read_file(path: Path, shard: int, data: bool) -> tuple[dict[str, Value], list[Tensor], int, str]:
    """Key-value pairs, tensors and alignment of one file, and how much of the data it holds."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Reader(path, view).read(shard, data)
    except FileNotFoundError:
        raise QuantmillError("no such file", path, "check the path") from None
    except OSError as error:
        raise QuantmillError(f"cannot be read ({error.strerror})", path) from None
    except ValueError:
        raise QuantmillError("an empty file", path, "download it again") from None


class _Reader:
    """Walks one file's header from its start; every length is checked before it is trusted."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path, self.view, self.at, self.size = path, view, 0, len(view)

    def read(self, shard: int, data: bool) -> tuple[dict[str, Value], list[Tensor], int, str]:
        types = BY_ID if data else _OF_EITHER_ENGINE
        try:
            tensor_count, kv_count = self._counts()
            kv = self._kv(kv_count)
            alignment = self._alignment(kv)
            tensors = [self._tensor(shard, types) for _ in range(tensor_count)]
        except struct.error:
            raise self._error(f"truncated: the file ends within its header, at {self.size:,} bytes") from None
        _refuse_duplicates(self.path, [tensor.name for tensor in tensors])
        placed, held = self._placed(tensors, alignment, data)
        return kv, placed, alignment, held

    def _counts(self) -> tuple[int, int]:
        magic = self.view[:4]
        if magic != b"GGUF":
            raise self._error(f"not a GGUF file (it begins with {magic!r})", "give a .gguf file")
        version, tensor_count, kv_count = self._unpack(struct.Struct("<4xIQQ"))
        if version & 0xFFFF == 0:
            raise self._error("a big-endian GGUF", "convert it to little-endian")
        if version not in (2, 3):
            raise self._error(f"GGUF version {version} is not known", "use version 2 or 3")
        self._check(tensor_count, _LEAST_TENSOR_BYTES, "tensors")
        self._check(kv_count, _LEAST_KV_BYTES, "key-value pairs")
        return tensor_count, kv_count

    def _kv(self, count: int) -> dict[str, Value]:
        kv: dict[str, Value] = {}
        for _ in range(count):
            key = self._text("a key")
            if key in kv:
                raise self._error(f"key {key} stands there twice")
            (value_type,) = self._unpack(_U32)
            start = self.at
            self._skip(value_type, key)
            kv[key] = value_type, self.view[start : self.at]
        return kv

    def _skip(self, value_type: int, key: str) -> None:
        """Move past a value."""
        if value_type == STRING:
            self._skip_strings(1, key)
        elif value_type == ARRAY:
            element, count = self._unpack(struct.Struct("<IQ"))
            if element == STRING:
                self._skip_strings(count, key)
            elif element in _SCALARS:
                size = struct.calcsize(_SCALARS[element])
                self._check(count, size, f"elements in {key}")
                self.at += count * size
            else:
                raise self._error(f"key {key} holds values of unknown type {element}")
        elif value_type in _SCALARS:
            self._unpack(struct.Struct(_SCALARS[value_type]))
        else:
            raise self._error(f"key {key} has unknown type {value_type}")

    def _skip_strings(self, count: int, key: str) -> None:
        """Move past strings; the hot loop of a vocabulary: a length past the end fails at the next one."""
        self._check(count, 8, f"strings in {key}")
        view, at, unpack = self.view, self.at, _U64.unpack_from
        for _ in range(count):
            at += 8 + unpack(view, at)[0]
        if at > self.size:
            raise self._error(f"a string in {key} runs past the end of the file")
        self.at = at

    def _alignment(self, kv: Mapping[str, Value]) -> int:
        value_type, raw = kv.get("general.alignment", encode_u32(ALIGNMENT))
        alignment = _U32.unpack(raw)[0] if value_type == U32 else 0
        if alignment == 0 or alignment & (alignment - 1):
            raise self._error("general.alignment is no power of two in a u32")
        return alignment

    def _tensor(self, shard: int, types: Mapping[int, GgmlType]) -> Tensor:
        name = self._text("a tensor's name")
        if not name.isprintable():
            raise self._error(f"tensor name {name!r} has control characters")
        if len(name.encode()) >= _MAX_NAME:
            raise self._error(f"tensor name {name[:40]}... is longer than {_MAX_NAME - 1} bytes")
        (dimensions,) = self._unpack(_U32)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._error(f"tensor {name} has {dimensions} dimensions")
        *shape, type_id, offset = self._unpack(struct.Struct(f"<{dimensions}QIQ"))
        if type_id not in types:
            what = f"tensor {name} has type {type_id}, which is not known"
            raise self._error(what, "convert the model with mainline llama.cpp")
        ggml_type = types[type_id]
        if 0 in shape or prod(shape) >= 1 << 63:
            raise self._error(f"tensor {name} has the absurd shape {tuple(shape)}")
        if shape[0] % ggml_type.block_elements:
            what = f"no multiple of {ggml_type.name}'s block of {ggml_type.block_elements}"
            raise self._error(f"tensor {name} has rows of {shape[0]} elements, {what}")
        size = tensor_bytes(ggml_type.name, shape)
        return Tensor(name, ggml_type.name, type_id, tuple(shape), size, shard, offset)

    def _placed(self, tensors: list[Tensor], alignment: int, data: bool) -> tuple[list[Tensor], str]:
        """The tensors with offsets from the file's start, and how much of their data is there."""
        start = padded(self.at, alignment)
        expected = end = 0
        placed = []
        for tensor in tensors:
            if tensor.offset != expected:
                raise self._error(f"tensor {tensor.name} has offset {tensor.offset:,}, expected {expected:,}")
            end = expected + tensor.bytes
            expected += padded(tensor.bytes, alignment)
            placed.append(tensor._replace(offset=start + tensor.offset))
        if not tensors or start + end <= self.size:
            return placed, "whole"
        held = "part" if self.size > start else "none"
        if data and held == "none":
            what = f"a header alone: the {end:,} bytes of its tensors are not there"
            raise self._error(what, "a plan can be made from it, anything else needs the whole file")
        if data:
            raise self._error(f"truncated: {start + end - self.size:,} of {start + end:,} bytes are missing")
        return placed, held

    def _text(self, what: str) -> str:
        (length,) = self._unpack(_U64)
        if length == 0 or length > self.size - self.at:
            raise self._error(f"{what} has the absurd length {length:,}")
        text = self.view[self.at : self.at + length]
        self.at += length
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise self._error(f"{what} is no UTF-8") from None

    def _unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        values = layout.unpack_from(self.view, self.at)
        self.at += layout.size
        return values

    def _check(self, count: int, least: int, what: str) -> None:
        if count * least > self.size - self.at:
            raise self._error(f"{count:,} {what} do not fit into a file of {self.size:,} bytes")

    def _error(self, what: str, cure: str = "the file is damaged, download it again") -> QuantmillError:
        return QuantmillError(what, self.path, cure)


def _shard_paths(path: Path, header: Header, count: int) -> tuple[Path, ...]:
    match = _SHARD_NAME.fullmatch(path.name)
    if header.value("split.no") != 0 or match is None or int(match[3]) != count:
        raise QuantmillError(
            f"not the first of {count} shards", path, f"give the file that ends in -00001-of-{count:05}.gguf"
        )
    return tuple(
        path.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)
    )


def _refuse_duplicates(path: Path, names: list[str]) -> None:
    for one, other in pairwise(sorted(names)):
        if one == other:
            raise QuantmillError(f"tensor {one} stands there twice", path, "the file is damaged")


def _string(text: str) -> bytes:
    raw = text.encode()
    return _U64.pack(len(raw)) + raw
