"""Cut the small test models out of the trained ones: python tests/data/make.py FOLDER.

FOLDER holds tiny-llama-F16.gguf and tiny-hybrid-moe-F16.gguf. Two layers of
each are kept, renumbered from 0, and of the second's 8 experts the first 4: a
layer of each kind, small enough for a repository, loadable by llama.cpp.
"""

import re
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

from quantmill.formats.ggufio import Header, encode_string, encode_u32, padded, read_header, serialize

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


def dense_with_prediction(source: Path, target: Path) -> None:
    """A layer of each kind and one of multi-token prediction, matrices in Q8_0."""
    header, layers = read_header(source), [1, 3, 7]
    data, random = source.read_bytes(), np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for tensor in header.tensors:
        block = re.match(r"blk\.(\d+)\.(.*)", tensor.name)
        if block and (int(block[1]) not in layers or re.search("_exps|gate_inp", block[2])):
            continue
        name = f"blk.{layers.index(int(block[1]))}.{block[2].replace('_shexp', '')}" if block else tensor.name
        kind = np.float16 if tensor.type == "f16" else np.float32
        arrays[name] = np.frombuffer(data, kind, tensor.elements, tensor.offset).reshape(tensor.shape[::-1])
    arrays["blk.2.nextn.eh_proj.weight"] = random.standard_normal((256, 512)).astype(np.float16) / 25
    for name in ("enorm", "hnorm", "shared_head_norm"):
        arrays[f"blk.2.nextn.{name}.weight"] = np.ones(256, np.float32)
    tensors, payloads = [], []
    for name, values in arrays.items():
        payload, type_id = values.tobytes(), 0
        if values.dtype == np.float16:
            type_id = gguf.GGMLQuantizationType.Q8_0
            payload = gguf.quantize(values.astype(np.float32), type_id).tobytes()
        tensors.append((name, int(type_id), values.shape[::-1]))
        payloads.append(payload.ljust(padded(len(payload)), b"\0"))
    arch = f"{header.architecture}."
    kv = {k.replace(arch, "qwen35."): v for k, v in header.kv.items() if not k.startswith(f"{arch}expert")}
    kv |= {
        "general.architecture": encode_string("qwen35"),
        "general.name": encode_string("Tiny MTP"),
        "general.file_type": encode_u32(7),
    }
    kv |= {"qwen35.attention.recurrent_layers": (9, struct.pack("<IQ3?", 7, 3, True, False, False))}
    for key, value in (
        ("block_count", 3),
        ("feed_forward_length", 256),
        ("nextn_predict_layers", 1),
        ("full_attention_interval", 2),
    ):
        kv[f"qwen35.{key}"] = encode_u32(value)
    target.write_bytes(serialize(kv, tensors) + b"".join(payloads))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    cut(folder / "tiny-llama-F16.gguf", HERE / "tiny-llama.gguf", [0, 1])
    cut(folder / "tiny-hybrid-moe-F16.gguf", HERE / "tiny-moe.gguf", [2, 3])
    dense_with_prediction(folder / "tiny-hybrid-moe-F16.gguf", HERE / "tiny-mtp-Q8_0.gguf")
