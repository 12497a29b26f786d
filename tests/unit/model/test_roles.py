"""Roles and layers of tensors, over every name that gguf-py knows."""

import pytest
from gguf.constants import TENSOR_NAMES

from quantmill.model.roles import CLASSES, GROUPS, ROLES, layer_of, role_of

TABLE = sorted({name.format(bid=7) for name in TENSOR_NAMES.values()})


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("token_embd.weight", "token_embd"),
        ("output.weight", "output"),
        ("output_norm.weight", "norm"),
        ("blk.3.attn_q.weight", "attn_q"),
        ("blk.3.attn_q.bias", "bias"),
        ("blk.3.attn_q_norm.weight", "norm"),
        ("blk.3.attn_kv_a_mqa.weight", "attn_kv_a_mqa"),
        ("blk.12.ffn_down_exps.weight", "ffn_down_exps"),
        ("blk.12.ffn_down_exps.scale", "scale"),
        ("blk.12.ffn_gate_up_exps.weight", "ffn_gate_up_exps"),
        ("blk.12.ffn_gate_inp.weight", "ffn_gate_inp"),
        ("blk.12.ffn_up.3.weight", "ffn_up"),
        ("blk.0.ssm_a", "ssm_a"),
        ("blk.0.ssm_dt.bias", "bias"),
        ("blk.64.nextn.eh_proj.weight", "nextn"),
        ("blk.64.nextn.shared_head_norm.weight", "norm"),
        ("enc.blk.2.attn_o.weight", "attn_o"),
        ("v.blk.2.attn_q.weight", "vision"),
        ("mm.1.weight", "vision"),
        ("a.blk.2.attn_q.weight", "audio"),
        ("mm.a.mlp.1.weight", "audio"),
        ("per_layer_token_embd.weight", "per_layer_token_embd"),
        ("blk.2.attn_kv_b.weight", "attn_kv_b"),
        ("blk.2.attn_qkv.weight", "attn_qkv"),
        ("blk.2.attn_gate.weight", "attn_gate"),
        ("blk.2.attn_q_a.weight", "attn_q_a"),
        ("blk.2.attn_k_b.weight", "attn_k_b"),
        ("blk.2.attn_kv_a_norm.weight", "norm"),
        ("blk.2.nextn.embed_tokens.weight", "nextn"),
        ("v.patch_embd.weight", "vision"),
        ("blk.2.shortconv.in_proj.weight", "shortconv.in_proj"),
        ("blk.2.indexer.k_proj.weight", "indexer.k_proj"),
        ("nextn.pre_projection.weight", "nextn"),
        ("rope_freqs.weight", "other"),
        ("blk.3.ffn_sideways.weight", "unknown"),
        ("blk.3.vision.weight", "unknown"),
        ("blk.3.output.weight", "unknown"),
        ("extra_table.weight", "unknown"),
    ],
)
def test_roles_are_the_words_of_the_field(name: str, role: str) -> None:
    assert role_of(name) == role


def test_no_name_of_gguf_is_left_unclassified() -> None:
    assert [name for name in TABLE if role_of(f"{name}.weight") not in ROLES - {"unknown"}] == []


def test_every_role_does_one_thing() -> None:
    roles = [role for group in GROUPS.values() for role in group]
    assert len(roles) == len(set(roles))
    assert set(roles) == ROLES > CLASSES


def test_an_ordinary_block_weight_has_its_own_name_as_role() -> None:
    blocks = [name for name in TABLE if name.startswith("blk.7.")]
    assert len(blocks) > 100
    for name in blocks:
        role = role_of(f"{name}.weight")
        assert role in CLASSES or role == name.removeprefix("blk.7.")


@pytest.mark.parametrize(
    ("name", "layer"),
    [("blk.11.attn_q.weight", 11), ("dec.blk.4.ffn_up.weight", 4), ("output.weight", -1), ("blk.", -1)],
)
def test_layers(name: str, layer: int) -> None:
    assert layer_of(name) == layer
