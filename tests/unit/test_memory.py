"""Memory beside the weights, against what llama.cpp allocates in a child process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantmill.errors import QuantmillError
from quantmill.model import memory
from quantmill.model.ggufio import read_header
from quantmill.model.types import known

DATA = Path(__file__).parents[1] / "data"
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
    found: dict[str, float] = {}
    for what, size in re.findall(r"CPU\s+(KV|RS|compute) buffer size = +([\d.]+) MiB", done.stdout):
        found[what] = found.get(what, 0.0) + float(size)
    return found


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


def write_windowed(path: Path, architecture: str, layers: int, **more: object) -> Path:
    """A model of an architecture with sliding windows; its weights are noise."""
    width, random = 128, np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(512)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*"abcdefghijklmnopqrstuvwxyz", "<s>", "</s>"])
    writer.add_token_types([1] * 26 + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(26)
    writer.add_eos_token_id(27)
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
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
