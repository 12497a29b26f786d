"""Small Hugging Face checkpoints from a seed, the same bytes everywhere; `safetensors` itself writes them.

`python tests/checkpoints.py FOLDER` writes the two that modelopt's digests in
tests/data/modelopt.json were made of (tests/data/golden_modelopt.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

HIDDEN, WIDTH, VOCABULARY, EXPERTS = 64, 96, 48, 3
TYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "U8": np.uint8}
COMMON = {
    "hidden_size": HIDDEN,
    "vocab_size": VOCABULARY,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}
LLAMA = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "intermediate_size": WIDTH,
}
MOE = COMMON | {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "intermediate_size": WIDTH,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
}


def values(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Bell-shaped float32 of the generator's raw bits alone: numpy's distributions may change."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    parts = raw.view(np.uint16).reshape(-1, 4).astype(np.int64).sum(axis=1) - 2 * 65535
    return (parts.astype(np.float32) * np.float32(2.0**-21)).reshape(shape)


def hard(matrix: np.ndarray) -> np.ndarray:
    """The matrix with what is hard: ties, zeros of both signs, a block of zeros, tiny blocks, an outlier."""
    # 2688 x 2^-14: `weight_scale_2` becomes 2^-14, and blocks whose largest is 6 x 2^-8 have exact ties.
    np.clip(matrix, -0.125, 0.125, out=matrix)
    matrix[0, 0] = 2688 * 2.0**-14
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6], np.float32) * np.float32(2.0**-8)
    matrix[1, :16] = np.concatenate([ties, -ties])
    matrix[2, :16], matrix[2, 16:32] = 0, -0.0
    matrix[3, :16] = np.float32(2.0**-20)
    matrix[4, :16] = np.linspace(-1, 1, 16, dtype=np.float32) * np.float32(2.0**-24)
    matrix[5, 3], matrix[5, 5] = 2.0**-17, -(2.0**-17)
    return matrix


def tensors(config: dict[str, Any], dtype: str) -> dict[str, tuple[str, np.ndarray]]:
    """The tensors of a small model by name, each with its dtype."""
    hidden = config["hidden_size"]
    heads = {"q": 64, "k": 32, "v": 32, "o": hidden}
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCABULARY, hidden),
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.{x}_layernorm.weight": (hidden,) for x in ("input", "post_attention")}
        shapes |= {f"{block}.self_attn.{x}_proj.weight": (rows, hidden) for x, rows in heads.items()}
        mlps = {f"{block}.mlp": config["intermediate_size"]}
        if "num_experts" in config:
            shapes |= {f"{block}.self_attn.{x}_proj.bias": (heads[x],) for x in "qkv"}
        if "num_experts" in config and layer not in config["mlp_only_layers"]:
            shapes[f"{block}.mlp.gate.weight"] = (config["num_experts"], hidden)
            shapes[f"{block}.mlp.shared_expert_gate.weight"] = (1, hidden)
            experts = range(config["num_experts"])
            mlps = {f"{block}.mlp.experts.{e}": config["moe_intermediate_size"] for e in experts}
            mlps[f"{block}.mlp.shared_expert"] = config["shared_expert_intermediate_size"]
        for name, width in mlps.items():
            shapes |= {f"{name}.{x}_proj.weight": (width, hidden) for x in ("gate", "up")}
            shapes[f"{name}.down_proj.weight"] = (hidden, width)
    made = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        data = values(shape, seed)
        made[name] = (dtype, hard(data) if name.endswith(("up_proj.weight", "down_proj.weight")) else data)
    return made


def save(path: Path, given: dict[str, tuple[str, np.ndarray]]) -> None:
    """One safetensors file, written by the package."""
    arrays = {
        name: np.ascontiguousarray(array.astype(TYPES[dtype])) for name, (dtype, array) in given.items()
    }
    save_file(arrays, path, {"format": "pt"})


def write(folder: Path, config: dict[str, Any] = LLAMA, dtype: str = "BF16", *, shards: int = 1) -> Path:
    """A whole checkpoint: config, tokenizer, weights (with `shards` > 1 a tensor each in turn)."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(config | {"dtype": np.dtype(TYPES[dtype]).name}, indent=2), encoding="utf-8"
    )
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8"
    )
    (folder / "generation_config.json").write_text('{"do_sample": true}', encoding="utf-8")
    made = tensors(config, dtype)
    if shards == 1:
        save(folder / "model.safetensors", made)
        return folder
    placed = {name: f"model-{n % shards + 1:05}-of-{shards:05}.safetensors" for n, name in enumerate(made)}
    for shard in sorted(set(placed.values())):
        save(folder / shard, {name: made[name] for name in made if placed[name] == shard})
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


CASES = {
    "llama-BF16": (LLAMA, "BF16"),
    "llama-F16": (LLAMA, "F16"),
    "llama-F32": (LLAMA, "F32"),
    "moe-BF16": (MOE, "BF16"),
}

if __name__ == "__main__":
    for case, (config, dtype) in CASES.items():
        write(Path(sys.argv[1]) / case, config, dtype)
