"""Memory beside the weights, against what llama.cpp allocates in a child process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import headers as shapes
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.formats.types import known
from quantmill.model import memory
from quantmill.model.header import read_source

DATA = Path(__file__).parents[2] / "data"
MIB = 1 << 20

NATIVE = """
import sys
from llama_cpp import llama_cpp as native
listen = native.llama_log_callback(lambda level, text, _: sys.stdout.write(text.decode(errors="replace")))
native.llama_log_set(listen, None)
model = native.llama_model_load_from_file(sys.argv[1].encode(), native.llama_model_default_params())
params = native.llama_context_default_params()
params.n_ctx, params.type_k, params.type_v = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[3])
params.swa_full = False  # as in llama.cpp's own tools
assert native.llama_init_from_model(model, params)
"""


def allocated(path: Path, context: int, cache: str) -> dict[str, float]:
    """MiB that llama.cpp says it allocates, summed by kind of buffer."""
    kind = str(known(cache).id)
    done = subprocess.run(
        [sys.executable, "-c", NATIVE, path, str(context), kind], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, float] = {}
    for what, size in re.findall(r"CPU\s+(KV|RS|compute) buffer size = +([\d.]+) MiB", done.stdout):
        result[what] = result.get(what, 0.0) + float(size)
    return result


def check(path: Path, context: int, cache: str) -> None:
    """Cache and states to the hundredth of a MiB that llama.cpp prints; the buffers within a tenth."""
    native = allocated(path, context, cache)
    ours = memory.needs(read_header(path), context, cache)
    assert ours.kv / MIB == pytest.approx(native.get("KV", 0), abs=0.0051)
    assert ours.state / MIB == pytest.approx(native.get("RS", 0), abs=0.0051)
    assert ours.compute / MIB == pytest.approx(native["compute"], rel=0.1)


@pytest.mark.parametrize(("context", "cache"), [(512, "f16"), (4096, "f16"), (8000, "q8_0")])
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-moe"])
def test_it_is_what_llama_cpp_allocates(model: str, context: int, cache: str) -> None:
    check(DATA / f"{model}.gguf", context, cache)


def begun(path: Path, architecture: str, layers: int, width: int) -> gguf.GGUFWriter:
    """A model's file with what every architecture has; a vocabulary of 28 tokens."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*"abcdefghijklmnopqrstuvwxyz", "<s>", "</s>"])
    writer.add_token_types([1] * 26 + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(26)
    writer.add_eos_token_id(27)
    return writer


def finished(writer: gguf.GGUFWriter, shapes: dict[str, tuple[int, ...]]) -> Path:
    """The file with weights of noise (shapes as numpy has them)."""
    random = np.random.default_rng(1)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(writer.path)


def write_windowed(path: Path, architecture: str, layers: int) -> Path:
    """A model of an architecture with sliding windows; its weights are noise."""
    width = 128
    writer = begun(path, architecture, layers, width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_sliding_window(512)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (28, width), "output_norm.weight": (width,)}
    norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    for layer in range(layers):
        block = f"blk.{layer}"
        shapes |= {f"{block}.{norm}.weight": (width,) for norm in norms}
        shapes |= {f"{block}.attn_{x}_norm.weight": (32,) for x in "qk"}
        shapes |= {f"{block}.attn_q.weight": (128, width), f"{block}.attn_output.weight": (width, 128)}
        shapes |= {f"{block}.attn_{x}.weight": (64, width) for x in "kv"}
        shapes |= {f"{block}.ffn_{x}.weight": (2 * width, width) for x in ("gate", "up")}
        shapes |= {f"{block}.ffn_down.weight": (width, 2 * width)}
    return finished(writer, shapes)


@pytest.mark.parametrize("context", [256, 1024, 8192])
def test_a_sliding_window_is_as_wide_as_llama_cpp_makes_it(tmp_path: Path, context: int) -> None:
    path = write_windowed(tmp_path / "gemma3.gguf", "gemma3", 7)
    native, ours = allocated(path, context, "f16"), memory.kv_bytes(read_header(path), context, "f16")
    assert ours / MIB == pytest.approx(native["KV"], abs=0.0101)
    if context == 8192:
        everywhere = 7 * 8192 * 2 * 2 * 32 * 2
        assert ours < everywhere / 2


def test_a_cache_of_another_type_is_refused() -> None:
    with pytest.raises(QuantmillError, match="no cache can have the type q4_K; take one of f32, f16"):
        memory.needs(read_header(DATA / "tiny-llama.gguf"), 512, "q4_K")


def table(path: Path, contexts: list[int] | None = None, **sizes: int) -> dict[str, Any]:
    """The memory tables of a model's files."""
    return memory.tables(read_header(path), sizes, contexts)


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-moe"])
def test_a_row_is_the_file_and_what_llama_cpp_allocates_beside_it(model: str) -> None:
    path = DATA / f"{model}.gguf"
    result = table(path, [256, 512], a=10**7)
    assert result["contexts"] == [256, 512]
    for row in result["recipes"]["a"]["rows"]:
        native = allocated(path, row["context"], row["cache"])
        cache = native.get("KV", 0) + native.get("RS", 0)
        assert row["cache_bytes"] / MIB == pytest.approx(cache, abs=0.0102)
        assert row["compute_bytes"] / MIB == pytest.approx(native["compute"], rel=0.1)
        parts = row["file_bytes"] + row["cache_bytes"] + row["compute_bytes"]
        assert (row["file_bytes"], row["total_bytes"]) == (10**7, parts)


def test_contexts_that_the_model_was_not_trained_for_are_left_out() -> None:
    own = int(read_header(DATA / "tiny-llama.gguf").value("llama.context_length"))
    assert table(DATA / "tiny-llama.gguf", [256, 10 * own], a=1)["contexts"] == [256]
    assert table(DATA / "tiny-llama.gguf", [10 * own], a=1)["contexts"] == [own]


def test_what_context_fits_is_the_longest_that_does(tmp_path: Path) -> None:
    header = read_source(shapes.gemma4(tmp_path / "gemma4.gguf"))
    size = 13_240_000_000  # Q4_K_M
    result = memory.tables(header, {"Q4_K_M": size}, [8192, 32768])
    assert result["contexts"] == [8192, 32768]
    fits = {
        (row["total_bytes"] >> 30, row["cache"]): row["context"]
        for row in result["recipes"]["Q4_K_M"]["fits"]
    }
    assert len(fits) == 6 * 3
    assert [fits[gb, "f16"] for gb in (8, 12)] == [0, 0]
    for (gb, cache), context in fits.items():
        room = (gb << 30) - memory.RESERVE - size
        if context:
            assert memory.needs(header, context, cache).total <= room
        if context < 262144:
            assert memory.needs(header, context + 256, cache).total > room
    assert fits[16, "f16"] < fits[16, "q8_0"] < fits[16, "q4_0"]
    assert fits[24, "f16"] == result["context_length"] == 262144


def test_a_projector_beside_a_file_leaves_less_room(tmp_path: Path) -> None:
    header = read_source(shapes.gemma4(tmp_path / "gemma4.gguf"))
    size, projector = 13_240_000_000, 900_000_000
    alone = memory.tables(header, {"a": size}, [8192])
    both = memory.tables(header, {"a": size}, [8192], {"m-BF16.gguf": projector, "m-Q8_0.gguf": 1})
    beside = both["recipes"]["a"].pop("projectors")
    assert both == alone
    assert [(one["file"], one["bytes"]) for one in beside] == [
        ("m-BF16.gguf", projector),
        ("m-Q8_0.gguf", 1),
    ]
    assert beside[0]["fits"] == memory.tables(header, {"a": size + projector}, [8192])["recipes"]["a"]["fits"]
    assert beside[0]["fits"] != alone["recipes"]["a"]["fits"]


def test_experts_of_their_own_have_no_cache(tmp_path: Path) -> None:
    header = read_source(shapes.huge(tmp_path / "huge.gguf", layers=3, experts=400))
    result = memory.tables(header, {"a": 1}, [4096])["recipes"]["a"]["rows"][0]
    # 3 layers of 8 heads, keys and values of 128, 2 bytes each
    assert result["cache_bytes"] == 4096 * 3 * 8 * 2 * 128 * 2


def write_latent(path: Path, layers: int) -> Path:
    """DeepSeek-V2's attention (MLA): one latent head, of which the cache holds the keys alone."""
    width, heads, latent, rope, nope, value = 128, 4, 64, 32, 32, 32
    writer = begun(path, "deepseek2", layers, width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(1)
    writer.add_key_length(latent + rope)
    writer.add_value_length(latent)
    writer.add_key_length_mla(nope + rope)
    writer.add_value_length_mla(value)
    writer.add_rope_dimension_count(rope)
    writer.add_q_lora_rank(64)
    writer.add_kv_lora_rank(latent)
    writer.add_leading_dense_block_count(layers)
    writer.add_expert_feed_forward_length(64)
    writer.add_expert_shared_count(1)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (28, width), "output_norm.weight": (width,)}
    for layer in range(layers):
        block = f"blk.{layer}"
        shapes |= {f"{block}.{norm}.weight": (width,) for norm in ("attn_norm", "ffn_norm")}
        shapes |= {
            f"{block}.attn_q_a_norm.weight": (64,),
            f"{block}.attn_kv_a_norm.weight": (latent,),
            f"{block}.attn_q_a.weight": (64, width),
            f"{block}.attn_q_b.weight": (heads * (nope + rope), 64),
            f"{block}.attn_kv_a_mqa.weight": (latent + rope, width),
            f"{block}.attn_k_b.weight": (heads, latent, nope),
            f"{block}.attn_v_b.weight": (heads, value, latent),
            f"{block}.attn_output.weight": (width, heads * value),
            f"{block}.ffn_down.weight": (width, 2 * width),
        }
        shapes |= {f"{block}.ffn_{x}.weight": (2 * width, width) for x in ("gate", "up")}
    return finished(writer, shapes)


@pytest.mark.parametrize(("context", "cache"), [(256, "f16"), (4096, "f16"), (4096, "q8_0")])
def test_a_latent_cache_holds_keys_alone(tmp_path: Path, context: int, cache: str) -> None:
    path = write_latent(tmp_path / "latent.gguf", 3)
    ours = memory.kv_bytes(read_header(path), context, cache)
    assert ours / MIB == pytest.approx(allocated(path, context, cache)["KV"], abs=0.0051)
