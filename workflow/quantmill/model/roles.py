"""What a tensor is for, by its name, in every architecture that llama.cpp knows.

A block's weight has its own middle name as its role (`blk.3.ffn_down_exps.weight`
is `ffn_down_exps`), so that roles are the words people already use. What no rule
speaks of one by one is put in classes: `norm`, `nextn` (multi-token prediction),
`bias`, `scale`, `vision` and `audio` (towers and projectors), `other` (tables,
heads of classifiers). A name that no table has is `unknown`, with a warning: it
is never guessed. Source: gguf-py's constants.py and llama.cpp's llama-arch.cpp.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_BLOCK: Final = re.compile(r"(?:(?:enc|dec)\.)?blk\.(\d+)\.(.+)")
_NORM: Final = re.compile(r".*norm.*|(.*[._])?ln\d?")
_OLD_EXPERT: Final = re.compile(r"\.\d+$")  # blk.0.ffn_up.7: an expert of its own, before 3-D tensors
_SUFFIXES: Final = {"bias": "bias", "scale": "scale", "input_scale": "scale"}
# What a projector's file and a speech decoder's hold.
_TOWERS: Final = {
    "vision": re.compile(r"(v|mm|resampler|adapter)\..+|model.image_newline"),
    "audio": re.compile(r"(a|mm\.a|posnet|convnext|conv1d)(\..+)?"),
}

_ROLES: Final = {
    "attention": """
        attn_q attn_k attn_v attn_output attn_qkv attn_gate attn_q_a attn_q_b attn_kv attn_kv_a_mqa attn_kv_b
        attn_k_b attn_v_b attn_output_a attn_output_b attn_o attn_sinks attn_rel_b attn_rot_embd
        attn_compressor_ape attn_compressor_gate attn_compressor_kv attn_conv_base attn_conv_proj
        attn_res_score cross_attn_q cross_attn_k cross_attn_v cross_attn_o cross_attn_rel_b vis_attn_qkv
        vis_attn_output indexer.attn_k indexer.attn_q_b indexer.k_proj indexer.q_proj indexer.proj
        indexer_compressor_ape indexer_compressor_gate indexer_compressor_kv hc_attn_base hc_attn_down
        hc_attn_fn hc_attn_inject hc_attn_scale hc_attn_up
    """,
    "dense": """
        ffn_gate ffn_up ffn_down ffn vis_gate vis_up vis_down ffn_conv_base ffn_conv_proj ffn_res_score
        hc_ffn_base hc_ffn_down hc_ffn_fn hc_ffn_inject hc_ffn_scale hc_ffn_up channel_mix_key
        channel_mix_lerp_k channel_mix_lerp_r channel_mix_receptance channel_mix_value ffn.act
    """,
    "experts": """
        ffn_gate_exps ffn_up_exps ffn_down_exps ffn_gate_up_exps ffn_gate_chexps ffn_up_chexps ffn_down_chexps
        ffn_latent_down ffn_latent_up ffn_routed_down ffn_routed_up
    """,
    "shared": "ffn_gate_shexp ffn_up_shexp ffn_down_shexp",
    "router": "ffn_gate_inp ffn_gate_inp_shexp ffn_gate_tid2eid exp_probs_b exp_probs_b_vl",
    "ssm": """
        ssm_in ssm_out ssm_alpha ssm_beta ssm_ba ssm_a ssm_d ssm_dt ssm_x ssm_g ssm_f_a ssm_f_b ssm_g_a
        ssm_g_b time_mix_a0 time_mix_a1 time_mix_a2 time_mix_decay time_mix_decay_w1 time_mix_decay_w2
        time_mix_first time_mix_g1 time_mix_g2 time_mix_gate time_mix_k_a time_mix_k_k time_mix_key
        time_mix_lerp_fused time_mix_lerp_g time_mix_lerp_k time_mix_lerp_r time_mix_lerp_v time_mix_lerp_w
        time_mix_lerp_x time_mix_output time_mix_r_k time_mix_receptance time_mix_v0 time_mix_v1 time_mix_v2
        time_mix_value time_mix_w0 time_mix_w1 time_mix_w2 shortconv.in_proj shortconv.out_proj
    """,
    "convolution": """
        ssm_conv1d ssm_conv1d_k ssm_conv1d_q ssm_conv1d_v shortconv.conv
    """,
    "mtp": "nextn",
    "embeddings": "token_embd",
    "output": "output",
    "per_layer": """
        per_layer_token_embd inp_gate proj altup_correct_coef altup_correct_scale altup_predict_coef
        altup_router laurel_l laurel_r layer_output_scale ple_conv1d ple_key ple_value
    """,
    "vision": "vision",
    "audio": "audio",
    "norm": "norm",
    "other": "bias scale other",
    "unknown": "unknown",
}
GROUPS: Final = {group: tuple(roles.split()) for group, roles in _ROLES.items()}
"""What roles do, in words that hold for every architecture; each role is in one group."""

CLASSES: Final = frozenset(("norm", "nextn", "bias", "scale", "vision", "audio", "other", "unknown"))

ROLES: Final = frozenset(role for roles in GROUPS.values() for role in roles)
"""Every role that the tables have; a test walks them."""

_OUTSIDE: Final = frozenset(("token_embd", "output", "per_layer_token_embd"))
_IN_BLOCKS: Final = ROLES - CLASSES - _OUTSIDE
_OTHER_NAMES: Final = """
    altup_proj altup_unembd_proj cls cls.output conf_proj d2t dense_2 dense_3 fc hrm.z_l_init markov_w1
    markov_w2 masked_embd_centroids masked_embd_ordering output_hc_base output_hc_down output_hc_fn
    output_hc_scale output_hc_up output_res_score per_layer_model_proj position_embd rope_factors_long
    rope_factors_short rope_freqs selector_hidden selector_predecessor selector_successor token_types
"""
_OTHER: Final = frozenset(_OTHER_NAMES.split())


@lru_cache(maxsize=1 << 18)
def role_of(name: str) -> str:
    """The role of a tensor; `unknown` where no table has its name."""
    stem, _, suffix = name.rpartition(".")
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    stem = stem if suffix == "weight" else name
    if _NORM.fullmatch(stem):
        return "norm"
    block = _BLOCK.fullmatch(stem)
    if block is not None:
        middle = _OLD_EXPERT.sub("", block[2])
        if middle.startswith("nextn."):
            return "nextn"
        return middle if middle in _IN_BLOCKS else "unknown"
    if stem in _OUTSIDE:
        return stem
    if stem.startswith("nextn."):
        return "nextn"
    tower = next((kind for kind in ("audio", "vision") if _TOWERS[kind].fullmatch(stem)), None)
    return tower or ("other" if stem in _OTHER else "unknown")


@lru_cache(maxsize=1 << 18)
def layer_of(name: str) -> int:
    """The number of the block that a tensor belongs to, -1 outside the blocks."""
    block = _BLOCK.match(name)
    return int(block[1]) if block else -1
