"""Headers of real models, made from the numbers in which they were published: no tensor data.

    python examples/headers.py results/headers

makes what the configs in examples/real/ plan from. Sizes, counts and keys: the
models' configs and tensor listings. The vocabulary is a filler of the size that
the published files' metadata have. Beside the headers stand two things that are
made up, for plans do not tell them from the real ones: layers' scores, and a
table of sensitivities in GGUF-Tool-Suite's form.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "workflow"))

from quantmill.formats.ggufio import Value, encode_string, encode_u32, serialize
from quantmill.formats.types import TYPES, known
from quantmill.model.header import read_source
from quantmill.model.roles import role_of

Shapes = dict[str, tuple[int, ...]]
F32 = frozenset(("norm", "ssm_conv1d", "ssm_a", "ssm_dt", "ffn_gate_inp", "scale", "rope_freqs"))


def write(
    path: Path,
    kv: dict[str, Any],
    shapes: Shapes,
    metadata: int = 0,
    source: str = "bf16",
    types: Mapping[str, str] | None = None,
) -> Path:
    """A header-only GGUF: matrices of type `source`, or as `types` has it, the rest f32; `metadata` bytes."""
    usual = {name: "f32" if any(word in name for word in F32) else source for name in shapes}
    types = usual | dict(types or {})
    tensors = [(name, TYPES[types[name]].id, shape) for name, shape in shapes.items()]
    values = {key: _value(value) for key, value in kv.items()}
    plain = len(serialize(values, tensors))
    values["tokenizer.filler"] = encode_string("x" * max(0, metadata - plain - 36))
    path.write_bytes(serialize(values, tensors))
    return path


def qwen35(path: Path, *, mtp: bool = False, source: str = "bf16", layers: int = 64) -> Path:
    """Qwen3.6-27B: hybrid, dense; with its multi-token prediction layer where asked for."""
    shapes: Shapes = {"token_embd.weight": (5120, 248320)}
    for layer in range(layers):
        shapes |= _hybrid(layer, hidden=5120, qkv=10240, gate=6144, state=48, q=12288, kv=1024)
        shapes |= _dense(layer, 5120, 17408)
    if mtp:
        shapes |= _full(layers, 5120, 12288, 1024) | _dense(layers, 5120, 17408)
        shapes[f"blk.{layers}.nextn.eh_proj.weight"] = (10240, 5120)
        shapes |= {f"blk.{layers}.nextn.{x}.weight": (5120,) for x in ("enorm", "hnorm", "shared_head_norm")}
    shapes |= {"output_norm.weight": (5120,), "output.weight": (5120, 248320)}
    kv = _qwen_kv("qwen35", layers + mtp, 5120, 24, 4, inner=6144, rank=48) | {
        "qwen35.feed_forward_length": 17408
    }
    if mtp:
        kv["qwen35.nextn_predict_layers"] = 1
    return write(path, kv, shapes, 11_000_000, source)


def qwen35moe(path: Path) -> Path:
    """Qwen3.5-35B-A3B: hybrid, 256 experts, a shared one."""
    shapes: Shapes = {"token_embd.weight": (2048, 248320)}
    for layer in range(40):
        shapes |= _hybrid(layer, hidden=2048, qkv=8192, gate=4096, state=32, q=8192, kv=512)
        block = f"blk.{layer}.ffn"
        shapes |= {
            f"{block}_gate_inp.weight": (2048, 256),
            f"{block}_gate_inp_shexp.weight": (2048,),
            f"{block}_gate_exps.weight": (2048, 512, 256),
            f"{block}_up_exps.weight": (2048, 512, 256),
            f"{block}_down_exps.weight": (512, 2048, 256),
            f"{block}_gate_shexp.weight": (2048, 512),
            f"{block}_up_shexp.weight": (2048, 512),
            f"{block}_down_shexp.weight": (512, 2048),
        }
    shapes |= {"output_norm.weight": (2048,), "output.weight": (2048, 248320)}
    kv = _qwen_kv("qwen35moe", 40, 2048, 16, 2, inner=4096, rank=32) | {
        "qwen35moe.expert_count": 256,
        "qwen35moe.expert_used_count": 8,
        "qwen35moe.expert_feed_forward_length": 512,
        "qwen35moe.expert_shared_feed_forward_length": 512,
    }
    return write(path, kv, shapes, 11_000_000)


def gemma4(path: Path) -> Path:
    """Gemma-4 26B-A4B with 98 experts, fused, beside a dense MLP: tied embeddings, widths 704 and 2112."""
    shapes: Shapes = {"token_embd.weight": (2816, 262144), "rope_freqs.weight": (256,)}
    for layer in range(30):
        block, wide = f"blk.{layer}", layer % 6 == 5
        head, kv = (512, 2) if wide else (256, 8)
        shapes |= (
            {
                f"{block}.attn_q.weight": (2816, 16 * head),
                f"{block}.attn_k.weight": (2816, kv * head),
                f"{block}.attn_output.weight": (16 * head, 2816),
                f"{block}.layer_output_scale.weight": (1,),
                f"{block}.attn_q_norm.weight": (head,),
                f"{block}.attn_k_norm.weight": (head,),
                f"{block}.ffn_gate_inp.weight": (2816, 98),
                f"{block}.ffn_gate_inp.scale": (2816,),
                f"{block}.ffn_gate_up_exps.weight": (2816, 1408, 98),
                f"{block}.ffn_down_exps.weight": (704, 2816, 98),
                f"{block}.ffn_down_exps.scale": (98,),
            }
            | _norms(layer, 2816)
            | _dense(layer, 2816, 2112)
        )
        if not wide:
            shapes[f"{block}.attn_v.weight"] = (2816, kv * head)
        norms = ("ffn_norm", "post_ffw_norm", "post_ffw_norm_1", "post_ffw_norm_2", "pre_ffw_norm_2")
        shapes |= {f"{block}.{norm}.weight": (2816,) for norm in norms}
    shapes["output_norm.weight"] = (2816,)
    kv = {
        "general.architecture": "gemma4",
        "gemma4.block_count": 30,
        "gemma4.context_length": 262144,
        "gemma4.embedding_length": 2816,
        "gemma4.feed_forward_length": 2112,
        "gemma4.attention.head_count": 16,
        "gemma4.attention.head_count_kv": [2 if layer % 6 == 5 else 8 for layer in range(30)],
        "gemma4.attention.key_length": 512,
        "gemma4.attention.value_length": 512,
        "gemma4.attention.key_length_swa": 256,
        "gemma4.attention.value_length_swa": 256,
        "gemma4.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma4.attention.sliding_window": 1024,
        "gemma4.attention.sliding_window_pattern": [layer % 6 != 5 for layer in range(30)],
        "gemma4.embedding_length_per_layer_input": 0,
        "gemma4.expert_count": 98,
        "gemma4.expert_used_count": 8,
        "gemma4.expert_feed_forward_length": 704,
    }
    return write(path, kv, shapes, 15_800_000)


def gpt_oss(path: Path) -> Path:
    """gpt-oss-20b: its experts are MXFP4 in the checkpoint, all else bf16; windows in every second layer."""
    shapes: Shapes = {"token_embd.weight": (2880, 201088)}
    for layer in range(24):
        block = f"blk.{layer}"
        shapes |= {
            f"{block}.attn_norm.weight": (2880,),
            f"{block}.post_attention_norm.weight": (2880,),
            f"{block}.attn_q.weight": (2880, 4096),
            f"{block}.attn_k.weight": (2880, 512),
            f"{block}.attn_v.weight": (2880, 512),
            f"{block}.attn_output.weight": (4096, 2880),
            f"{block}.ffn_gate_inp.weight": (2880, 32),
            f"{block}.ffn_gate_exps.weight": (2880, 2880, 32),
            f"{block}.ffn_up_exps.weight": (2880, 2880, 32),
            f"{block}.ffn_down_exps.weight": (2880, 2880, 32),
        }
    shapes |= {"output_norm.weight": (2880,), "output.weight": (2880, 201088)}
    biases: Shapes = {f"blk.{layer}.attn_sinks.weight": (64,) for layer in range(24)}
    wide = {"attn_q": 4096, "attn_k": 512, "attn_v": 512, "attn_output": 2880, "ffn_gate_inp": 32}
    for layer in range(24):
        biases |= {f"blk.{layer}.{name}.bias": (rows,) for name, rows in wide.items()}
        biases |= {f"blk.{layer}.ffn_{name}_exps.bias": (2880, 32) for name in ("gate", "up", "down")}
    kv = {
        "general.architecture": "gpt-oss",
        "gpt-oss.block_count": 24,
        "gpt-oss.context_length": 131072,
        "gpt-oss.embedding_length": 2880,
        "gpt-oss.feed_forward_length": 2880,
        "gpt-oss.attention.head_count": 64,
        "gpt-oss.attention.head_count_kv": 8,
        "gpt-oss.attention.key_length": 64,
        "gpt-oss.attention.value_length": 64,
        "gpt-oss.attention.layer_norm_rms_epsilon": 1e-5,
        "gpt-oss.attention.sliding_window": 128,
        "gpt-oss.expert_count": 32,
        "gpt-oss.expert_used_count": 4,
        "gpt-oss.expert_feed_forward_length": 2880,
    }
    types = {name: "mxfp4" for name in shapes if "_exps" in name} | dict.fromkeys(biases, "f32")
    return write(path, kv, shapes | biases, 13_000_000, types=types)


def huge(path: Path, layers: int = 87, experts: int = 382) -> Path:
    """2.4 T parameters in 100,000 tensors: each expert a tensor of its own."""
    shapes: Shapes = {"token_embd.weight": (7168, 163840)}
    for layer in range(layers):
        block = f"blk.{layer}"
        shapes |= {
            f"{block}.attn_q.weight": (7168, 8192),
            f"{block}.attn_k.weight": (7168, 1024),
            f"{block}.attn_v.weight": (7168, 1024),
            f"{block}.attn_output.weight": (8192, 7168),
            f"{block}.attn_norm.weight": (7168,),
            f"{block}.ffn_norm.weight": (7168,),
            f"{block}.ffn_gate_inp.weight": (7168, experts),
        }
        for expert in range(experts):
            for part, shape in (("gate", (7168, 3328)), ("up", (7168, 3328)), ("down", (3328, 7168))):
                shapes[f"{block}.ffn_{part}.{expert}.weight"] = shape
    shapes |= {"output_norm.weight": (7168,), "output.weight": (7168, 163840)}
    kv = {
        "general.architecture": "qwen3moe",
        "qwen3moe.block_count": layers,
        "qwen3moe.context_length": 131072,
        "qwen3moe.embedding_length": 7168,
        "qwen3moe.feed_forward_length": 3328,
        "qwen3moe.expert_feed_forward_length": 3328,
        "qwen3moe.attention.head_count": 64,
        "qwen3moe.attention.head_count_kv": 8,
        "qwen3moe.attention.key_length": 128,
        "qwen3moe.attention.value_length": 128,
        "qwen3moe.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3moe.expert_count": experts,
        "qwen3moe.expert_used_count": 8,
    }
    return write(path, kv, shapes)


def _hybrid(layer: int, *, hidden: int, qkv: int, gate: int, state: int, q: int, kv: int) -> Shapes:
    """A layer of Qwen3.5: every fourth has full attention, the others a gated delta net."""
    if layer % 4 == 3:
        return _full(layer, hidden, q, kv)
    block = f"blk.{layer}"
    return _norms(layer, hidden) | {
        f"{block}.attn_qkv.weight": (hidden, qkv),
        f"{block}.attn_gate.weight": (hidden, gate),
        f"{block}.ssm_out.weight": (gate, hidden),
        f"{block}.ssm_alpha.weight": (hidden, state),
        f"{block}.ssm_beta.weight": (hidden, state),
        f"{block}.ssm_conv1d.weight": (4, qkv),
        f"{block}.ssm_a": (state,),
        f"{block}.ssm_dt.bias": (state,),
        f"{block}.ssm_norm.weight": (128,),
    }


def _full(layer: int, hidden: int, q: int, kv: int) -> Shapes:
    block = f"blk.{layer}"
    return _norms(layer, hidden) | {
        f"{block}.attn_q.weight": (hidden, q),
        f"{block}.attn_k.weight": (hidden, kv),
        f"{block}.attn_v.weight": (hidden, kv),
        f"{block}.attn_output.weight": (q // 2, hidden),
        f"{block}.attn_q_norm.weight": (256,),
        f"{block}.attn_k_norm.weight": (256,),
    }


def _norms(layer: int, hidden: int) -> Shapes:
    return {f"blk.{layer}.{norm}.weight": (hidden,) for norm in ("attn_norm", "post_attention_norm")}


def _dense(layer: int, hidden: int, width: int) -> Shapes:
    block = f"blk.{layer}.ffn"
    return {
        f"{block}_gate.weight": (hidden, width),
        f"{block}_up.weight": (hidden, width),
        f"{block}_down.weight": (width, hidden),
    }


def _qwen_kv(
    arch: str, layers: int, hidden: int, heads: int, kv: int, *, inner: int, rank: int
) -> dict[str, Any]:
    return {
        "general.architecture": arch,
        f"{arch}.block_count": layers,
        f"{arch}.context_length": 262144,
        f"{arch}.embedding_length": hidden,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv,
        f"{arch}.attention.key_length": 256,
        f"{arch}.attention.value_length": 256,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{arch}.full_attention_interval": 4,
        f"{arch}.rope.dimension_sections": [11, 11, 10, 0],
        f"{arch}.ssm.conv_kernel": 4,
        f"{arch}.ssm.state_size": 128,
        f"{arch}.ssm.group_count": 16,
        f"{arch}.ssm.time_step_rank": rank,
        f"{arch}.ssm.inner_size": inner,
    }


def _value(value: Any) -> Value:
    """A value of a header: u32, f32, string, bool, or an array of i32 or bool."""
    if isinstance(value, str):
        return encode_string(value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, int):
        return encode_u32(value)
    if isinstance(value[0], bool):
        return 9, struct.pack(f"<IQ{len(value)}?", 7, len(value), *value)
    return 9, struct.pack(f"<IQ{len(value)}i", 5, len(value), *value)


KINDS = ("iq3_kt", "iq3_k", "iq4_kt", "iq4_ks", "iq4_k", "iq5_k", "iq6_k", "q6_K", "q8_0")
MAINLINE = ("iq2_s", "iq3_s", "iq3_xxs", "iq4_xs", "q4_K", "q5_K", "q6_K", "q8_0")


def sensitivities(header: Path, folder: Path, kinds: tuple[str, ...] = KINDS) -> None:
    """kld_results.csv and group0.csv of a model, made up: what a tensor loses goes by its role alone."""
    folder.mkdir(exist_ok=True)
    worth = {"token_embd": 0.5, "output": 4.0, "attn_v": 3.0, "attn_k": 2.0, "ffn_down": 2.0, "ssm_out": 2.0}
    weights = [
        t
        for t in read_source(header).tensors
        if len(t.shape) > 1 and t.shape[1] > 64 and "conv1d" not in t.name
    ]
    names = ",".join(tensor.name for tensor in weights)
    values = ",".join(f"{1e-4 * worth.get(role_of(tensor.name), 1.0):.6f}" for tensor in weights)
    (folder / "kld_results.csv").write_text(f"QTYPE,{names}\n{kinds[1]},{values}\n", encoding="utf-8")
    points = "".join(f"{kind},{4 ** (3 - known(kind).bits):.6f}\n" for kind in kinds)
    (folder / "group0.csv").write_text(f"QTYPE,group0\nbf16,0\n{points}", encoding="utf-8")


def main(folder: Path) -> None:
    """Make all that examples/real/ plans from."""
    folder.mkdir(parents=True, exist_ok=True)
    dense = qwen35(folder / "qwen3.6-27b.gguf")
    qwen35(folder / "qwen3.6-27b-mtp-q8_0.gguf", mtp=True, source="q8_0")
    experts = qwen35moe(folder / "qwen3.5-35b-a3b.gguf")
    gemma4(folder / "gemma-4-98e.gguf")
    huge(folder / "2.4t.gguf")
    sensitivities(dense, folder)
    sensitivities(experts, folder / "qwen3.5-35b-a3b", MAINLINE)
    (folder / "layer-scores.json").write_text(
        json.dumps([30 - layer for layer in range(30)]) + "\n", encoding="utf-8"
    )
    print(f"{len(list(folder.glob('*.gguf')))} headers in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "results/headers"))
