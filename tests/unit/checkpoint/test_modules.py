"""What of a checkpoint becomes NVFP4, by its names; and what the exclude list says of the rest."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from quantmill.checkpoint.modules import exclude_list, excluded, find, unchanged_modules
from quantmill.checkpoint.safetensors import Tensor

TAKEN = {
    "model.layers.0.mlp.gate_proj.weight": "gate+up",
    "model.layers.0.mlp.up_proj.weight": "gate+up",
    "model.layers.0.mlp.down_proj.weight": "down",
    "model.layers.1.mlp.gate_up_proj.weight": "alone",
    "model.language_model.layers.7.mlp.shared_expert.down_proj.weight": "shared",
    "model.layers.3.mlp.shared_experts.up_proj.weight": "deepseek",
    "model.layers.3.mlp.experts.12.up_proj.weight": "expert 12",
    "model.layers.3.mlp.experts.12.gate_proj.weight": "expert 12",
    "model.layers.3.mlp.experts.13.gate_proj.weight": "expert 13",
    "model.layers.2.block_sparse_moe.experts.4.w1.weight": "mixtral",
    "model.layers.2.block_sparse_moe.experts.4.w3.weight": "mixtral",
    "model.layers.2.block_sparse_moe.experts.4.w2.weight": "mixtral down",
}
KEPT = [
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.linear_attn.in_proj_qkv.weight",
    "model.layers.3.mlp.gate.weight",
    "model.layers.3.mlp.shared_expert_gate.weight",
    "model.layers.8.mlp.up_proj.weight",
    "model.visual.layers.0.mlp.up_proj.weight",
    "vision_tower.layers.0.mlp.up_proj.weight",
    "mtp.layers.0.mlp.up_proj.weight",
    "audio_tower.layers.1.mlp.up_proj.weight",
    "model.layers.0.mlp.gate_proj.bias",
    "model.layers.0.post_attention_layernorm.weight",
]


def tensors(names: list[str]) -> dict[str, Tensor]:
    """Matrices of these names; norms and biases as vectors."""
    flat = (".bias", "norm.weight")
    return {n: Tensor(n, "BF16", (32,) if n.endswith(flat) else (32, 32), Path("x")) for n in names}


def test_mlp_alone_is_taken_and_what_readers_fuse_shares_a_scale() -> None:
    groups = find(tensors([*TAKEN, *KEPT]), layers=8)
    together: dict[str, set[str]] = {}
    for name, group in TAKEN.items():
        together.setdefault(group, set()).add(name.removesuffix(".weight"))
    assert sorted(map(sorted, together.values())) == sorted(
        sorted(p.module for p in group) for group in groups
    )


def test_without_a_number_of_layers_none_is_beyond() -> None:
    assert len(find(tensors(["layers.99.mlp.up_proj.weight"]), layers=None)) == 1


def test_unchanged_modules_are_matrices_and_the_head_of_tied_models() -> None:
    unchanged = unchanged_modules(tensors(KEPT[1:]).values(), set())
    assert unchanged == sorted(
        name.removesuffix(".weight") for name in KEPT if not name.endswith((".bias", "norm.weight"))
    )


@pytest.mark.parametrize(
    ("unchanged", "quantized", "patterns"),
    [
        (["lm_head"], ["model.layers.0.mlp.up"], ["lm_head"]),
        (["m.0.attn.q", "m.0.attn.k", "m.0.mlp.gate"], ["m.0.mlp.gate_proj"], ["m.0.attn*", "m.0.mlp.gate"]),
        (["m.1.attn.q"], ["m.10.up"], ["m.1.*"]),
        (["mtp.0.up", "mtp.norm"], ["m.0.up"], ["mtp*"]),
    ],
)
def test_the_exclude_list_is_short_and_right(
    unchanged: list[str], quantized: list[str], patterns: list[str]
) -> None:
    assert exclude_list(unchanged, quantized) == patterns
    assert all(any(fnmatch(name, p) for p in patterns) for name in unchanged)
    assert not any(fnmatch(name, p) for p in patterns for name in quantized)


def test_excluded_goes_by_wildcard_and_by_part_as_vllm_does() -> None:
    names = [
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.self_attn.q",
        "a.lm_head",
        "model.layers.10.x",
    ]
    patterns = ["model.layers.0.self_attn*", "lm_head", "model.layers.1*", "model.layers.0.mlp.gate"]
    assert excluded(names, patterns) == set(names)
    assert excluded(names, ["lm_head"]) == {"a.lm_head"}
    assert excluded(names, []) == set()
