"""Prune the trained mixture of experts for the examples: python examples/models/make.py SOURCE IMATRIX.

SOURCE is tiny-hybrid-moe-F16.gguf, IMATRIX what llama-imatrix counted with it.
Of each layer's eight experts the four stay that saw the most tokens, in their
own order, and with them their rows of the router.
"""

import re
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "workflow"))

from quantmill.formats.ggufio import encode_string, encode_u32, padded, read_header, serialize
from quantmill.formats.imatrix import read_gguf

TARGET = Path(__file__).with_name("tiny-moe-F16.gguf")
EXPERTS = 4


def main(source: Path, imatrix: Path) -> None:
    """Write the pruned model beside this file."""
    header, data, entries = read_header(source), source.read_bytes(), read_gguf(imatrix).entries
    tensors, payloads = [], []
    for tensor in header.tensors:
        shape, payload = tensor.shape, data[tensor.offset : tensor.offset + tensor.bytes]
        of_experts = re.fullmatch(r"blk\.(\d+)\.(ffn_(gate|up|down)_exps|ffn_gate_inp)\.weight", tensor.name)
        if of_experts:
            counts = entries[f"blk.{of_experts[1]}.ffn_up_exps.weight"].counts
            size = len(payload) // len(counts)
            kept = sorted(np.argsort(-counts, kind="stable")[:EXPERTS])
            payload = b"".join(payload[expert * size : (expert + 1) * size] for expert in kept)
            shape = (*shape[:-1], EXPERTS)
        tensors.append((tensor.name, tensor.type_id, shape))
        payloads.append(payload.ljust(padded(len(payload)), b"\0"))
    kv = {
        **{key: value for key, value in header.kv.items() if key != "general.size_label"},
        "general.name": encode_string("Tiny MoE"),
        f"{header.architecture}.expert_count": encode_u32(EXPERTS),
    }
    TARGET.write_bytes(serialize(kv, tensors) + b"".join(payloads))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
