"""Cut the small test models out of the trained ones: python tests/data/make.py FOLDER.

FOLDER holds tiny-llama-F16.gguf and tiny-hybrid-moe-F16.gguf. Two layers of
each are kept, renumbered from 0, and of the second's 8 experts the first 4: a
layer of each kind, small enough for a repository, loadable by llama.cpp.
"""

import re
import struct
import sys
from pathlib import Path

from quantmill.model.ggufio import Header, encode_u32, padded, read_header, serialize

HERE = Path(__file__).parent
EXPERTS = 4


def cut(source: Path, target: Path, layers: list[int]) -> None:
    """Write `layers` of a model and all that stands outside the blocks."""
    header = read_header(source)
    data = source.read_bytes()
    experts = header.value(f"{header.architecture}.expert_count")
    tensors, payloads = [], []
    for tensor in header.tensors:
        block = re.match(r"blk\.(\d+)\.(.*)", tensor.name)
        if block and int(block[1]) not in layers:
            continue
        name = f"blk.{layers.index(int(block[1]))}.{block[2]}" if block else tensor.name
        shape, payload = tensor.shape, data[tensor.offset : tensor.offset + tensor.bytes]
        if experts and shape[-1] == experts and re.search(r"_exps\.|ffn_gate_inp\.", name):
            # experts are the slowest dimension: the first of them are a prefix
            shape, payload = (*shape[:-1], EXPERTS), payload[: len(payload) * EXPERTS // experts]
        tensors.append((name, tensor.type_id, shape))
        payloads.append(payload.ljust(padded(len(payload)), b"\0"))
    target.write_bytes(serialize(metadata(header, layers), tensors) + b"".join(payloads))


def metadata(header: Header, layers: list[int]) -> dict:
    """The model's key-value pairs, with what counts layers and experts adapted."""
    arch = header.architecture
    changed = {f"{arch}.block_count": encode_u32(len(layers))}
    if f"{arch}.expert_count" in header.kv:
        changed[f"{arch}.expert_count"] = encode_u32(EXPERTS)
    recurrent = f"{arch}.attention.recurrent_layers"
    if recurrent in header.kv:
        flags = [header.value(recurrent)[layer] for layer in layers]
        changed[recurrent] = (9, struct.pack(f"<IQ{len(flags)}?", 7, len(flags), *flags))
    return {key: changed.get(key, value) for key, value in header.kv.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    cut(folder / "tiny-llama-F16.gguf", HERE / "tiny-llama.gguf", [0, 1])
    cut(folder / "tiny-hybrid-moe-F16.gguf", HERE / "tiny-moe.gguf", [2, 3])
