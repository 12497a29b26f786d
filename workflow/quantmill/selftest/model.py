"""A small model of random weights, all of one type: as numbers, and as a GGUF.

One layer of Qwen3's architecture, dense or with experts, which both engines
evaluate. Its widths are multiples of 256 and its rows of 32, so that blocks of
256, repacked weights and AMX's tiles are used; several blocks make a row.
The numbers are what gguf-py makes of the quantized bytes, an opinion of the
formats that is not the engine's.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray

from quantmill.engine.ggml import Conversion

Values = NDArray[np.float32]

WIDTH: Final = 512
HEADS: Final = 8
KV_HEADS: Final = 4
HEAD: Final = 64  # the width of a head
FFN: Final = 768
EXPERT_FFN: Final = 512
EXPERTS: Final = 4
EXPERTS_USED: Final = 2
VOCABULARY: Final = 512
EPSILON: Final = 1e-5
ROPE_BASE: Final = 10000.0
CONTEXT: Final = 512

_SEED: Final = 11


@dataclass(frozen=True)
class Model:
    """Weights by name, without `.weight`: as the type holds them, and in its own bytes.

    `lost` is the most that quantizing took of a weight: the error's length relative to its own.
    """

    type_name: str
    experts: bool
    values: dict[str, Values]
    stored: dict[str, NDArray]
    lost: float

    def write(self, path: Path) -> None:
        """Write the model as a GGUF without a tokenizer."""
        writer = gguf.GGUFWriter(path, "qwen3moe" if self.experts else "qwen3")
        writer.add_block_count(1)
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(WIDTH)
        writer.add_feed_forward_length(FFN)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_key_length(HEAD)
        writer.add_value_length(HEAD)
        writer.add_layer_norm_rms_eps(EPSILON)
        writer.add_rope_freq_base(ROPE_BASE)
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(VOCABULARY)
        if self.experts:
            writer.add_expert_count(EXPERTS)
            writer.add_expert_used_count(EXPERTS_USED)
            writer.add_expert_feed_forward_length(EXPERT_FFN)
        kind = gguf.GGMLQuantizationType[self.type_name.upper()]
        for name, data in self.stored.items():
            of_type = data.dtype == np.uint8
            writer.add_tensor(f"{name}.weight", data, raw_dtype=kind if of_type else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def generate(type_name: str, *, experts: bool) -> Model:
    """The model whose matrices are of a ggml type; the same on every call.

    Attention and feed-forward add about as much as the embedding has, so that no
    matrix's errors are lost in another's values. Norms and the router are f32, as always.
    """
    random = np.random.default_rng(_SEED)
    shapes: dict[str, tuple[tuple[int, ...], float]] = {
        "token_embd": ((VOCABULARY, WIDTH), 0.5),
        "output": ((VOCABULARY, WIDTH), WIDTH**-0.5),
        "blk.0.attn_q": ((HEADS * HEAD, WIDTH), WIDTH**-0.5),
        "blk.0.attn_k": ((KV_HEADS * HEAD, WIDTH), WIDTH**-0.5),
        "blk.0.attn_v": ((KV_HEADS * HEAD, WIDTH), WIDTH**-0.5),
        "blk.0.attn_output": ((WIDTH, HEADS * HEAD), 1.5 * WIDTH**-0.5),
    }
    stack, suffix, ffn = ((EXPERTS,), "_exps", EXPERT_FFN) if experts else ((), "", FFN)
    shapes |= {f"blk.0.ffn_{name}{suffix}": ((*stack, ffn, WIDTH), WIDTH**-0.5) for name in ("gate", "up")}
    shapes |= {f"blk.0.ffn_down{suffix}": ((*stack, WIDTH, ffn), 2.0 * ffn**-0.5)}
    values: dict[str, Values] = {}
    stored: dict[str, NDArray] = {}
    lost: list[float] = []
    with ThreadPoolExecutor(2) as pool:
        for name, (shape, deviation) in shapes.items():
            drawn = random.standard_normal(shape, np.float32) * np.float32(deviation)
            values[name], stored[name] = _as_type(pool, drawn, type_name)
            lost.append(float(np.linalg.norm(values[name] - drawn) / np.linalg.norm(drawn)))
    small = {"blk.0.attn_norm": WIDTH, "blk.0.ffn_norm": WIDTH, "output_norm": WIDTH}
    for name, width in small.items():
        values[name] = random.uniform(0.5, 1.5, width).astype(np.float32)
    for name in ("blk.0.attn_q_norm", "blk.0.attn_k_norm"):
        values[name] = random.uniform(0.75, 2.25, HEAD).astype(np.float32)
    if experts:
        router = random.standard_normal((EXPERTS, WIDTH), np.float32)
        values["blk.0.ffn_gate_inp"] = router * np.float32(WIDTH**-0.5)
    stored = {name: stored.get(name, data) for name, data in values.items()}
    return Model(type_name, experts, values, stored, max(lost))


def _as_type(pool: ThreadPoolExecutor, drawn: Values, type_name: str) -> tuple[Values, NDArray]:
    """Values [..., rows, columns] as a type holds them, and its bytes [..., rows, bytes]."""
    shape = (*drawn.shape[::-1], 1)[:3]
    raw = drawn.reshape(-1).view(np.uint8)
    data = Conversion(pool, 2, raw, "f32", type_name, shape, None).result().reshape(*drawn.shape[:-1], -1)
    kind = gguf.GGMLQuantizationType[type_name.upper()]
    return gguf.dequantize(data, kind).reshape(drawn.shape), data
