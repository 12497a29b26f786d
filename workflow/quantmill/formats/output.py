"""What llama-quantize makes of a model's header: the key-value pairs and the order of the tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypedDict

from quantmill.formats.ggufio import ALIGNMENT, Header, Value, encode_string, encode_u32

_QUANTIZATION_VERSION: Final = 2  # GGML_QNT_VERSION
_OVERRIDE_BYTES: Final = 127  # what llama_model_kv_override holds of a string
_BLOCK: Final = re.compile(r"blk\.(\d+)")


class ImatrixFacts(TypedDict):
    """What the metadata of a quantized file say of its importance matrix: `quantize.imatrix.*`."""

    file: str
    dataset: str | None
    entries: int
    chunks: int


def output_kv(header: Header, file_type: int, imatrix: ImatrixFacts | None) -> dict[str, Value]:
    """The key-value pairs of a quantized file: what llama-quantize makes of the source's.

    `imatrix` is what they say of the one that was used, if any.
    Source: tools/quantize/quantize.cpp and src/llama-quant.cpp; a key that is
    set moves to the end, a string is cut to 127 bytes. The output is aligned to
    32 bytes, so another alignment is not passed on (llama-quantize does, and
    pads to 32 all the same: such a file cannot be opened).
    """
    made = {
        "general.quantization_version": encode_u32(_QUANTIZATION_VERSION),
        "general.file_type": encode_u32(file_type),
    }
    if imatrix is not None:
        made["quantize.imatrix.file"] = encode_string(_cut(imatrix["file"]))
        if imatrix["dataset"]:
            made["quantize.imatrix.dataset"] = encode_string(_cut(imatrix["dataset"]))
        made["quantize.imatrix.entries_count"] = encode_u32(imatrix["entries"])
        if imatrix["chunks"] > 0:
            made["quantize.imatrix.chunks_count"] = encode_u32(imatrix["chunks"])
    dropped = {"split.no", "split.count", "split.tensors.count", *made}
    if header.alignment != ALIGNMENT:
        dropped.add("general.alignment")
    return {key: value for key, value in header.kv.items() if key not in dropped} | made


def llama_order(names: Iterable[str]) -> list[str]:
    """Names in the order in which llama-quantize writes tensors: by layer, then by name.

    Source: `weight_name_comparer` of src/llama-model-loader.h. What stands
    outside the blocks comes first.
    """

    def key(name: str) -> tuple[int, bytes]:
        block = _BLOCK.match(name)
        return int(block[1]) if block else -1, name.encode()

    return sorted(names, key=key)


def _cut(text: str) -> str:
    return text.encode()[:_OVERRIDE_BYTES].decode(errors="ignore")
