"""A model without its tensors' data, from a GGUF's header or a manifest. Plans are made from it.

llama.cpp's dry run wants a file of the full size, and looks at no data: it is
given sparse files, which take no room. It adds tensors to a list that it
searches from the start each time, so that a model of 100,000 tensors is given
in parts, within which alone it searches.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from quantmill.errors import QuantmillError
from quantmill.files import read_mapping, read_table
from quantmill.formats.ggufio import (
    ARRAY,
    Header,
    Tensor,
    Value,
    encode_string,
    encode_u32,
    padded,
    read_header,
    serialize,
)
from quantmill.formats.output import llama_order
from quantmill.formats.types import known, named, tensor_bytes

FACTS: Final = "model.json"
PART: Final = 1000
"""Most tensors of a file for the dry run, as long as these are no more than `_PARTS` files."""

_PARTS: Final = 100  # llama.cpp holds them all open

_U16, _I32, _F32, _BOOL = 2, 5, 6, 7
_FLOATS: Final = (_F32, 12)  # and f64
_FILLER: Final = "quantmill.filler"
_MOST_FILLER: Final = 1 << 30


def read_source(path: Path) -> Header:
    """The header of a model to plan: a GGUF, or its header alone, or `manifest.tsv` beside `model.json`.

    QuantmillError where the data break off: that is an interrupted download.
    """
    if path.suffix == ".tsv":
        return read_manifest(path, path.with_name(FACTS))
    header = read_header(path, data=False)
    return read_header(path) if header.data == "part" else header


def read_manifest(path: Path, facts: Path) -> Header:
    """The header of a model listed in a table with `name`, `ne0`..., `type` and described in JSON.

    `facts` needs `architecture` and `hyperparameters`, the GGUF's own keys below
    `{architecture}.`: what llama.cpp's mixtures depend on. QuantmillError where one
    of those is missing, for llama.cpp would guess it and get other sizes.
    """
    description = read_mapping(facts)
    if not isinstance(description.get("architecture"), str):
        raise QuantmillError("does not say the architecture", facts, "it is a manifest's model.json")
    arch, given = description["architecture"], description.get("hyperparameters")
    if not isinstance(given, dict):
        raise QuantmillError("has no hyperparameters", facts, f"give block_count and the like of {arch}")
    kv = {"general.architecture": encode_string(arch)}
    name, filler = description.get("name") or "", description.get("metadata_bytes", 0)
    if not isinstance(name, str) or type(filler) is not int or filler > _MOST_FILLER:
        raise QuantmillError("its name or metadata_bytes is none", facts, "it is a manifest's model.json")
    if name:
        kv["general.name"] = encode_string(name)
    kv |= {f"{arch}.{key}": _value(value, f"{facts}: hyperparameters.{key}") for key, value in given.items()}
    tensors = _listed(path)
    _check(given, [tensor.name for tensor in tensors], facts)
    plain = len(serialize(kv, _rows(tensors))) + len(_FILLER) + 20
    if filler > plain:  # the vocabulary's bytes, in number
        kv[_FILLER] = encode_string("." * (filler - plain))
    return Header(path, (path,), tuple(tensors), kv, data="none")


def hyperparameters(header: Header) -> dict[str, Any]:
    """The values below `{architecture}.` by their keys' ends, but for long ones and what JSON has no word
    for, NaN and infinity: `model.json`'s.
    """
    prefix = f"{header.architecture}."
    values = {
        key.removeprefix(prefix): header.value(key)
        for key in header.kv
        if key.startswith(prefix) and len(header.kv[key][1]) < 1 << 16
    }
    return {key: value for key, value in values.items() if _finite(value)}


def not_finite(header: Header) -> dict[str, str]:
    """The keys of the metadata that hold NaN or infinity, and which of them."""
    bad_keys: dict[str, str] = {}
    for key, (kind, raw) in header.kv.items():
        if (kind if kind != ARRAY else raw[0]) in _FLOATS and not _finite(value := header.value(key)):
            values = value if isinstance(value, list) else [value]
            bad_keys[key] = "NaN" if any(map(math.isnan, values)) else "infinite"
    return bad_keys


@contextmanager
def for_dry_run(header: Header) -> Iterator[Path]:
    """A file (the first of several, where there are many tensors) that llama.cpp can plan the model from."""
    if header.data == "whole" and len(header.tensors) <= PART and "-of-" not in header.path.name:
        yield header.path
        return
    by_name = {tensor.name: tensor for tensor in header.tensors}
    names = llama_order(by_name)
    most = max(PART, -(-len(names) // _PARTS))
    parts = [names[at : at + most] for at in range(0, len(names), most)]
    kv = {key: value for key, value in header.kv.items() if not key.startswith("split.")}
    kv.pop("general.alignment", None)
    with TemporaryDirectory(prefix="quantmill-") as folder:
        paths = [Path(folder) / split_name("x", n, len(parts)) for n in range(len(parts))]
        for number, (path, names) in enumerate(zip(paths, parts, strict=True)):
            tensors = [by_name[name] for name in names]
            split = split_kv(number, len(parts), len(by_name)) if len(parts) > 1 else {}
            path.write_bytes(serialize((kv if number == 0 else {}) | split, _rows(tensors)))
            size = path.stat().st_size + sum(padded(tensor.bytes) for tensor in tensors)
            try:
                os.truncate(path, size)
            except OSError as error:
                raise QuantmillError(
                    f"no sparse file of {size:,} bytes can be made ({error.strerror})",
                    folder,
                    "set TMPDIR to a folder on another disk",
                ) from None
        yield paths[0]


def split_name(stem: str, number: int, count: int) -> str:
    """The name of a part, its number from 0; llama.cpp finds the others by the first one's."""
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"


def split_kv(number: int, count: int, tensors: int) -> dict[str, Value]:
    """What a part of a split model says of itself: its number from 0, of how many, the tensors of all.

    In the order of llama-gguf-split, which sets `split.count` last.
    """
    return {
        "split.no": (_U16, struct.pack("<H", number)),
        "split.tensors.count": (_I32, struct.pack("<i", tensors)),
        "split.count": (_U16, struct.pack("<H", count)),
    }


def _finite(value: Any) -> bool:
    """Whether a value's numbers are all finite; a text has none."""
    values = value if isinstance(value, list) else [value]
    return all(math.isfinite(each) for each in values if isinstance(each, float))


def _rows(tensors: list[Tensor]) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(tensor.name, tensor.type_id, tensor.shape) for tensor in tensors]


def _listed(path: Path) -> list[Tensor]:
    """The tensors of a manifest."""
    tensors = []
    for number, row in enumerate(read_table(path), start=2):
        try:
            sizes = [int(row.get(f"ne{i}") or 1) for i in range(4)]
            while len(sizes) > 1 and sizes[-1] == 1:
                sizes.pop()
            kind = known(named(row["type"]) or row["type"])
            if min(sizes) < 1 or math.prod(sizes) >= 1 << 63:
                raise ValueError(f"the absurd shape {tuple(sizes)}")
            size = tensor_bytes(kind.name, sizes)
            tensors.append(Tensor(row["name"], kind.name, kind.id, tuple(sizes), size, 0, 0))
        except (KeyError, ValueError, QuantmillError) as error:
            raise QuantmillError(
                f"no row of a manifest ({error})",
                f"{path}: line {number}",
                "it takes the columns name, ne0 to ne3 and type",
            ) from None
    if len({tensor.name for tensor in tensors}) < len(tensors) or not tensors:
        raise QuantmillError("lists no tensor, or one twice", path, "make it again")
    return tensors


def _check(given: Mapping[str, Any], names: list[str], facts: Path) -> None:
    needed = ["block_count", "embedding_length", "context_length"]
    if any(".attn_" in name for name in names):
        needed += ["attention.head_count", "attention.head_count_kv"]
    if any("_exps." in name for name in names):
        needed += ["expert_count", "expert_used_count"]
    for key in needed:
        if key not in given:
            raise QuantmillError(
                f"hyperparameters lack {key}", facts, "llama.cpp's mixtures depend on it: add it"
            )


def _value(value: Any, where: str) -> Value:
    """A JSON value as llama.cpp reads it: u32, f32, string, bool, or an array of i32, f32 or bool."""
    with suppress(struct.error, OverflowError):  # too large a number
        return _encoded(value)
    raise QuantmillError(f"{value!r} is no value of a hyperparameter", where, "give a number, text or a list")


def _encoded(value: Any) -> Value:
    match value:
        case bool():
            return _BOOL, struct.pack("<?", value)
        case int() if 0 <= value < 1 << 32:
            return encode_u32(value)
        case float():
            return _F32, struct.pack("<f", value)
        case str():
            return encode_string(value)
        case [first, *_] if all(type(each) is type(first) for each in value):
            kinds = {bool: (_BOOL, "?"), int: (_I32, "i"), float: (_F32, "f")}
            if type(first) in kinds:
                kind, code = kinds[type(first)]
                return ARRAY, struct.pack(f"<IQ{len(value)}{code}", kind, len(value), *value)
    raise OverflowError
