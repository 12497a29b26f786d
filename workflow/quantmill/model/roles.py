"""What a tensor is for, told from its name, in every architecture that GGUF knows.

A block's weight has its own middle name as its role (`blk.3.ffn_down_exps.weight`
is `ffn_down_exps`), so that roles are the words people already use. What no rule
speaks of one by one is put in classes: `norm`, `nextn` (multi-token prediction),
`bias`, `scale`, and `other` (adapters, vision and audio towers, tables).
"""

from __future__ import annotations

import re
from typing import Final

_BLOCK: Final = re.compile(r"(?:(?:enc|dec)\.)?blk\.(\d+)\.(.+)")
_NORM: Final = re.compile(r".*norm.*|(.*[._])?ln\d?")
_OLD_EXPERT: Final = re.compile(r"\.\d+$")  # blk.0.ffn_up.7: an expert of its own, before 3-D tensors
_SUFFIXES: Final = {"bias": "bias", "scale": "scale", "input_scale": "scale"}
_OUTSIDE: Final = frozenset(("token_embd", "output", "per_layer_token_embd"))

CLASSES: Final = frozenset(("norm", "nextn", "bias", "scale", "other"))

_IN_BLOCKS: Final = """
    attn_gate attn_k attn_k_b attn_kv_a_mqa attn_kv_b attn_o attn_output attn_q attn_q_a attn_q_b attn_qkv
    attn_rel_b attn_rot_embd attn_sinks attn_v attn_v_b
    cross_attn_k cross_attn_o cross_attn_q cross_attn_rel_b cross_attn_v
    ffn ffn_down ffn_gate ffn_up ffn_down_exps ffn_gate_exps ffn_up_exps ffn_gate_up_exps
    ffn_down_shexp ffn_gate_shexp ffn_up_shexp ffn_down_chexps ffn_gate_chexps ffn_up_chexps
    ffn_gate_inp ffn_gate_inp_shexp ffn_latent_down ffn_latent_up exp_probs_b
    ssm_a ssm_alpha ssm_ba ssm_beta ssm_conv1d ssm_conv1d_k ssm_conv1d_q ssm_conv1d_v ssm_d ssm_dt
    ssm_f_a ssm_f_b ssm_g_a ssm_g_b ssm_in ssm_out ssm_x
    shortconv.conv shortconv.in_proj shortconv.out_proj indexer.attn_k indexer.attn_q_b indexer.proj
    altup_correct_coef altup_correct_scale altup_predict_coef altup_router laurel_l laurel_r
    inp_gate proj layer_output_scale vis_attn_output vis_attn_qkv vis_down vis_gate vis_up
    channel_mix_key channel_mix_lerp_k channel_mix_lerp_r channel_mix_receptance channel_mix_value
    time_mix_a0 time_mix_a1 time_mix_a2 time_mix_decay time_mix_decay_w1 time_mix_decay_w2 time_mix_first
    time_mix_g1 time_mix_g2 time_mix_gate time_mix_k_a time_mix_k_k time_mix_key time_mix_lerp_fused
    time_mix_lerp_g time_mix_lerp_k time_mix_lerp_r time_mix_lerp_v time_mix_lerp_w time_mix_lerp_x
    time_mix_output time_mix_r_k time_mix_receptance time_mix_v0 time_mix_v1 time_mix_v2 time_mix_value
    time_mix_w0 time_mix_w1 time_mix_w2
"""

ROLES: Final = CLASSES | _OUTSIDE | frozenset(_IN_BLOCKS.split())
"""Every role of gguf-py's tables; a test walks them."""


def role_of(name: str) -> str:
    """The role of a tensor."""
    stem, _, suffix = name.rpartition(".")
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    stem = stem if suffix == "weight" else name
    if _NORM.fullmatch(stem):
        return "norm"
    block = _BLOCK.fullmatch(stem)
    if block is None:
        return stem if stem in _OUTSIDE else "other"
    middle = _OLD_EXPERT.sub("", block[2])
    return "nextn" if middle.startswith("nextn.") else middle


def layer_of(name: str) -> int:
    """The number of the block that a tensor belongs to, -1 outside the blocks."""
    block = _BLOCK.match(name)
    return int(block[1]) if block else -1
