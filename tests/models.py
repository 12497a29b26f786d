"""Small GGUF files for tests, written by gguf-py: an opinion of the format that is not ours."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_llama(path: Path, *, width: int = 576, layers: int = 2, tied: bool = True, dtype: type = np.float32,
                quantized: str | None = None, **options: int) -> Path:  # fmt: skip
    """A llama of random weights; `quantized` (a ggml type's name) is the type of its matrices."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_name("Small")
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "bc", "ü" * 3])
    shapes = {"token_embd.weight": (32, width), "output_norm.weight": (width,)}
    if not tied:
        shapes["output.weight"] = (32, width)
    for layer in range(layers):
        block = f"blk.{layer}"
        shapes |= {f"{block}.attn_{x}.weight": (width, width) for x in ("q", "k", "v", "output")}
        shapes |= {f"{block}.ffn_{x}.weight": (2 * width, width) for x in ("gate", "up")}
        shapes |= {f"{block}.ffn_down.weight": (width, 2 * width)}
        shapes |= {f"{block}.{x}_norm.weight": (width,) for x in ("attn", "ffn")}
    for name, shape in shapes.items():
        data = random.standard_normal(shape).astype(dtype if len(shape) > 1 else np.float32)
        if quantized is not None and len(shape) > 1:
            kind = gguf.GGMLQuantizationType[quantized.upper()]
            writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_coarse(source: Path, path: Path) -> Path:
    """A model with the last seven of the ten bits of the mantissa of each f16 weight cleared.

    A quantization of a kind, and the same bytes on every machine.
    """
    data = bytearray(source.read_bytes())
    for tensor in gguf.GGUFReader(source).tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.F16:
            start, count = int(tensor.data_offset), int(tensor.n_elements)
            bits = np.frombuffer(data, np.uint16, count, start)
            data[start : start + 2 * count] = (bits & 0xFF80).tobytes()
    path.write_bytes(data)
    return path
