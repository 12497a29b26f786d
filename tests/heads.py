"""Models whose draft head (multi-token prediction) is right or wrong, made of the small one, whose head was
never trained.
"""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np

from quantmill.formats.ggufio import read_header

UNTRAINED = Path(__file__).parent / "data" / "tiny-mtp-Q8_0.gguf"

BLOCK = np.dtype([("scale", np.float16), ("values", np.int8, 32)])
"""32 values of Q8_0."""


def write_right(path: Path, layers: float = 0.0) -> Path:
    """A model of which each token follows from the one before alone, and whose head knows which: no layer
    adds anything, and the head reads nothing but the token. With `layers` above 0 the model's own layers add
    that share of what they did, and the head is right less often.
    """
    header, data = read_header(UNTRAINED), bytearray(UNTRAINED.read_bytes())
    places = {tensor.name: slice(tensor.offset, tensor.offset + tensor.bytes) for tensor in header.tensors}
    for name, place in places.items():
        if re.search(r"ffn_down|attn_output|ssm_out", name):
            blocks = np.frombuffer(bytes(data[place]), BLOCK).copy()
            blocks["scale"] *= np.float16(0.0 if name.startswith("blk.2.") else layers)
            data[place] = blocks.tobytes()
    only_token = np.hstack([np.eye(256, dtype=np.float32), np.zeros((256, 256), np.float32)])
    projection = gguf.quantize(only_token, gguf.GGMLQuantizationType.Q8_0).tobytes()
    data[places["blk.2.nextn.eh_proj.weight"]] = projection
    data[places["blk.2.nextn.shared_head_norm.weight"]] = data[places["output_norm.weight"]]
    path.write_bytes(data)
    return path


def write_wrong(path: Path) -> Path:
    """The small model with a head that ranks last what it would rank first: its last norm is negated."""
    header, data = read_header(UNTRAINED), bytearray(UNTRAINED.read_bytes())
    norm = next(one for one in header.tensors if one.name == "blk.2.nextn.shared_head_norm.weight")
    place = slice(norm.offset, norm.offset + norm.bytes)
    data[place] = (-np.frombuffer(bytes(data[place]), np.float32)).tobytes()
    path.write_bytes(data)
    return path
