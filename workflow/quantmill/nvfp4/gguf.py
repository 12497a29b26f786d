"""NVFP4 in a GGUF: its blocks, and the per-tensor scale of those tensors that llama.cpp multiplies by it.

A weight `X.weight` of type nvfp4 may have `X.scale` beside it, F32, one value
(of experts one each): modelopt's `weight_scale_2`. llama.cpp loads it for every
architecture (`load_tensors` of src/llama-model.cpp), but only some graphs apply
it (src/models/*.cpp): elsewhere the file loads and computes nonsense. So it is
written where the table below has it, and nowhere else.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from quantmill.formats.ggufio import ARRAY, STRING, Value, decode, encode_string
from quantmill.model.roles import layer_of, role_of

Bytes = npt.NDArray[np.uint8]

BLOCK: Final = 64
"""Values of a block of GGUF's: four of NVFP4's own."""

_DENSE: Final = ("ffn_gate", "ffn_up", "ffn_down")
_EXPERTS: Final = tuple(f"{role}_exps" for role in _DENSE)
_SHARED: Final = tuple(f"{role}_shexp" for role in _DENSE)
_ATTENTION: Final = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output")
_LINEAR: Final = ("attn_gate", "ssm_alpha", "ssm_beta", "ssm_out")

_LLAMA: Final = (*_DENSE, *_EXPERTS, *_ATTENTION, "output")
_MLA: Final = (*_DENSE, *_EXPERTS, *_SHARED, "attn_output")
_NEMOTRON: Final = (*_DENSE, *_EXPERTS, *_SHARED, *_ATTENTION, "ssm_in", "ssm_out", "output")

# Of the pinned llama-cpp-python's llama.cpp: the roles whose every product in the architecture's graphs
# is given the weight's scale. What is missing here is quantized without one.
_APPLIED: Final[dict[str, tuple[str, ...]]] = {
    "cohere2": (*_DENSE, *_ATTENTION, "output"),
    "cohere2moe": (*_DENSE, *_EXPERTS, *_SHARED, *_ATTENTION),
    "deepseek32": _MLA,
    "dots3note": _MLA,
    "gemma4": _LLAMA,
    "glm-dsa": _MLA,
    "hy_v3": (*_LLAMA, *_SHARED),
    "llama": _LLAMA,
    "llama-embed": _LLAMA,
    "mellum": (*_EXPERTS, *_ATTENTION, "output"),
    "mistral3": _LLAMA,
    "nanbeige": (*_DENSE, *_ATTENTION, "output"),
    "nemotron_h": _NEMOTRON,
    "nemotron_h_moe": _NEMOTRON,
    "qwen3": (*_DENSE, *_ATTENTION, "output"),
    "qwen35": (*_DENSE, *_ATTENTION, *_LINEAR, "output"),
    "qwen35moe": (*_EXPERTS, *_SHARED, *_ATTENTION, *_LINEAR, "output"),
    "qwen3moe": (*_EXPERTS, *_ATTENTION, "output"),
    "qwen4exp": (*_EXPERTS, *_SHARED, "attn_q", "attn_v", "attn_qkv", "attn_output", *_LINEAR, "output"),
    "qwen3next": (*_EXPERTS, *_SHARED, "attn_q", "attn_k", "attn_v", "attn_output", "output"),
}

# Weights of one input, which modelopt gives one scale: readers fuse them.
_TOGETHER: Final = (
    ("attn_q", "attn_k", "attn_v"),
    *(pair[:2] for pair in (_DENSE, _EXPERTS, _SHARED)),
)
_GROUP: Final = {role: number for number, roles in enumerate(_TOGETHER) for role in roles}

_NAMES, _PRECISION = "general.tensor_extra.name", "general.tensor_extra.prec_a4"
_BOOL = 7


def scale_name(weight: str) -> str:
    """`blk.0.ffn_up.scale` of `blk.0.ffn_up.weight`."""
    return f"{weight.removesuffix('.weight')}.scale"


def scalable(architecture: str, names: Iterable[str], present: Collection[str]) -> list[str]:
    """Those of the weights to which llama.cpp applies a per-tensor scale; `present` are all tensors' names.

    Not where the tensor has a scale already, of the architecture's own, nor
    where a bias is added: the graph asserts that there is none.
    """
    roles = _APPLIED.get(architecture, ())
    return [
        name
        for name in names
        if name.endswith(".weight")
        and role_of(name) in roles
        and scale_name(name) not in present
        and f"{name.removesuffix('.weight')}.bias" not in present
    ]


def together(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Of each weight those, itself among them, that share its scale: gate and up, q, k and v of a layer."""
    groups: dict[tuple[int, int | str], list[str]] = {}
    for name in names:
        groups.setdefault((layer_of(name), _GROUP.get(role_of(name), name)), []).append(name)
    return {name: tuple(group) for group in groups.values() for name in group}


def packed(codes: Bytes, scales: Bytes) -> Bytes:
    """Modelopt's codes [rows, columns / 2] and block scales [rows, columns / 16] as GGUF's blocks of 64.

    A block is 4 scales, then of each 16 values 8 bytes: the first eight values
    in the low halves, the others in the high ones. The bytes are those that
    llama.cpp's converter makes (`_nvfp4_pack`).
    """
    halves = codes.reshape(-1, 2, 4)  # of each 16 values: the first eight, the others; two a byte
    first, second = halves[:, 0], halves[:, 1]
    values = np.empty((len(halves), 4, 2), np.uint8)
    values[..., 0] = (first & 0x0F) | (second << 4)
    values[..., 1] = (first >> 4) | (second & 0xF0)
    blocks = np.empty((len(halves) // 4, 4 + BLOCK // 2), np.uint8)
    blocks[:, :4] = scales.reshape(-1, 4) & 0x7F
    blocks[:, 4:] = values.reshape(-1, BLOCK // 2)
    return blocks.reshape(-1)


def weights_only(kv: Mapping[str, Value], names: Collection[str]) -> dict[str, Value]:
    """The key-value pairs which say that activations before these weights must not become 4-bit floats.

    As the converter writes them for W4A16; with what the source's `kv` says of
    other tensors. None at all where there is nothing to say.
    """
    precise: dict[str, bool] = {}
    if _NAMES in kv and _PRECISION in kv:
        precise = dict(zip(decode(kv[_NAMES]), decode(kv[_PRECISION]), strict=False))
    precise |= dict.fromkeys(names, False)
    if not names:
        return {}
    ordered = sorted(precise)
    flags = bytes(precise[name] for name in ordered)
    return {
        _NAMES: (
            ARRAY,
            struct.pack("<IQ", STRING, len(precise)) + b"".join(encode_string(n)[1] for n in ordered),
        ),
        _PRECISION: (ARRAY, struct.pack("<IQ", _BOOL, len(precise)) + flags),
    }
