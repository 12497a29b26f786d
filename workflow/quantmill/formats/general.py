"""Values that a config gives the metadata of files, as settings of a stage and as GGUF has them.

Keys: docs/gguf.md of ggml; types: gguf-py's GGUFWriter.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import isfinite
from typing import Final

from quantmill.formats.ggufio import ARRAY, STRING, Header, Value, encode_string, encode_u32

Plain = str | int | float | list[str]
"""A value in a spec."""

SAMPLING: Final = "general.sampling."
"""The beginning of the keys of recommended sampling."""

BASE_MODEL: Final = "general.base_model."
"""The beginning of the keys of the models that a model was made of."""

_I32, _F32 = 5, 6


def sampling(header: Header) -> dict[str, Plain]:
    """The recommended sampling of a file, by the ends of the keys; floats as they were written."""
    values = {key.removeprefix(SAMPLING): header.value(key) for key in header.kv if key.startswith(SAMPLING)}
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in values.items()
        if isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))
    }


def beside(header: Header, values: Mapping[str, Plain]) -> dict[str, Plain]:
    """Values that a file gets beside those of its source: no base models where this names its own."""
    own = f"{BASE_MODEL}count" in header.kv
    return {key: value for key, value in values.items() if not (own and key.startswith(BASE_MODEL))}


def encoded(values: Mapping[str, Plain]) -> dict[str, Value]:
    """The key-value pairs of a file: counts are u32, other whole numbers i32, floats f32."""
    return {key: _encoded(key, value) for key, value in values.items()}


def unmeasured(values: Mapping[str, Plain]) -> dict[str, Plain]:
    """Those that change nothing that is measured of a file: all but the tokenizer's."""
    return {key: value for key, value in values.items() if not key.startswith("tokenizer.")}


def _encoded(key: str, value: Plain) -> Value:
    if isinstance(value, str):
        return encode_string(value)
    if isinstance(value, list):
        texts = b"".join(encode_string(text)[1] for text in value)
        return ARRAY, struct.pack("<IQ", STRING, len(value)) + texts
    if isinstance(value, float):
        return _F32, struct.pack("<f", value)
    return encode_u32(value) if key.endswith(".count") else (_I32, struct.pack("<i", value))
