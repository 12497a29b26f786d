"""Heads of multi-token prediction (MTP): which the pinned llama.cpp computes; models without, heads alone."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import ARRAY, Header, Value, encode_u32
from quantmill.formats.settings import ImatrixFile, Mtp
from quantmill.model.roles import layer_of

NONE: Final = "none"
ONLY: Final = "only"

SINGLE: Final = frozenset(
    (
        "bailingmoe3",
        "cohere2moe",
        "deepseek2",
        "deepseek32",
        "glm-dsa",
        "glm4moe",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
    )
)
"""Architectures whose graph of the head takes one head (src/models/*.cpp, `graph_mtp`)."""

CHAINED: Final = frozenset(("hy_v3", "mimo2", "step35"))
"""Those of several heads, one for each further token."""


def check_head(header: Header, where: object, field: str = "imatrix.mtp") -> None:
    """Refuse a model without a head, or with one that the engine has no graph for, of which `field` of the
    config asks something.
    """
    heads = header.layers - header.evaluated
    cure = f"leave out `{field}` for it"
    if not header.has_mtp:
        raise QuantmillError("has no layer of multi-token prediction", where, cure)
    if header.architecture in CHAINED or (header.architecture in SINGLE and heads == 1):
        return
    what = f"{heads} heads" if header.architecture in SINGLE else "a head"
    raise QuantmillError(
        f"the engine does not know {what} for multi-token prediction of {header.architecture}", where, cure
    )


def has_values(header: Header, imatrix: ImatrixFile | None, where: object) -> bool:
    """Whether the head has importance values. QuantmillError where they are asked for and cannot be had."""
    asked = imatrix is not None and imatrix.get("mtp", False)
    if asked:
        check_head(header, where)
    return asked


def for_file(header: Header, mtp: Mtp | None) -> Header:
    """The model as a file with the setting `mtp` has it: without its head (`none`), the head alone with what
    stands outside the layers (`only`), or all of it.

    The head alone keeps the numbers of its layers: llama.cpp knows such a file by its lack of a layer 0
    (src/models/*.cpp, `mtp_only`), and needs the embeddings and the output in it. A header with fewer
    tensors than its file has no data.
    """
    if mtp not in (NONE, ONLY):
        return header
    main = header.evaluated
    if mtp == NONE:
        tensors = tuple(tensor for tensor in header.tensors if layer_of(tensor.name) < main)
        return replace(header, tensors=tensors, kv=_without(header), data="none")
    tensors = tuple(tensor for tensor in header.tensors if not 0 <= layer_of(tensor.name) < main)
    return replace(header, tensors=tensors, data="none")


def is_draft(header: Header) -> bool:
    """Whether a file has a head and none of the layers before it."""
    layers = {layer_of(tensor.name) for tensor in header.tensors} - {-1}
    return header.has_mtp and bool(layers) and min(layers) >= header.evaluated


def _without(header: Header) -> Mapping[str, Value]:
    """The key-value pairs of a model without its head: counts, and arrays of a value a layer, are cut."""
    own, layers = f"{header.architecture}.", header.evaluated
    kv = {key: value for key, value in header.kv.items() if key != f"{own}nextn_predict_layers"}
    for key, (kind, raw) in kv.items():
        if key.startswith(own) and kind == ARRAY:
            element, count = struct.unpack_from("<IQ", raw)
            if count == header.layers:
                size = (len(raw) - 12) // count
                kv[key] = ARRAY, struct.pack("<IQ", element, layers) + raw[12 : 12 + layers * size]
    return kv | {f"{own}block_count": encode_u32(layers)}
