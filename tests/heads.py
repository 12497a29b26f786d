"""Models whose draft head (multi-token prediction) is right, made of the small one, whose head was never
trained.
"""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np

from quantmill.formats.ggufio import read_header

UNTRAINED = Path(__file__).parent / "data" / "tiny-mtp-Q8_0.gguf"


def write_right(path: Path) -> Path:
    """A model of which each token follows from the one before alone, and whose head knows which: no layer
    adds anything, and the head reads nothing but the token.
    """
    header, data = read_header(UNTRAINED), bytearray(UNTRAINED.read_bytes())
    places = {tensor.name: slice(tensor.offset, tensor.offset + tensor.bytes) for tensor in header.tensors}
    for name, place in places.items():
        if re.search(r"ffn_down|attn_output|ssm_out", name):
            data[place] = bytes(place.stop - place.start)
    only_token = np.hstack([np.eye(256, dtype=np.float32), np.zeros((256, 256), np.float32)])
    projection = gguf.quantize(only_token, gguf.GGMLQuantizationType.Q8_0).tobytes()
    data[places["blk.2.nextn.eh_proj.weight"]] = projection
    data[places["blk.2.nextn.shared_head_norm.weight"]] = data[places["output_norm.weight"]]
    path.write_bytes(data)
    return path
