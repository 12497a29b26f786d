"""Small GGUF files for tests, written by gguf-py: an opinion of the format that is not ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from quantmill.formats import ggufio

EMBEDDER: dict[str, Any] = {
    "source": {"path": "bert.gguf"},
    "recipes": ["Q8_0"],
    "imatrix": None,
    "sensitivity": None,
    "bench": {"embeddings": {"corpus": "held-out", "chunks": 4, "context": 32}},
    "publish": {},
}
"""A model of a config that predicts no next token."""


PROJECTOR: dict[str, Any] = EMBEDDER | {
    "source": {"path": "mmproj.gguf"},
    "bench": {"projector": {"media": ["picture.png"]}},
}
"""A projector of a config, measured on a picture."""


DRAFTER: dict[str, Any] = EMBEDDER | {
    "source": {"path": "mtp.gguf"},
    "bench": {
        "draft": {"corpus": "held-out", "chunks": 4, "context": 32},
        "served": {"server": "server", "draft": [1]},
    },
}
"""A model of a config with a draft head."""


def write_llama(
    path: Path,
    *,
    width: int = 576,
    layers: int = 2,
    tied: bool = True,
    dtype: type = np.float32,
    quantized: str | None = None,
    loads: bool = False,
    **options: int,
) -> Path:
    """A llama of random weights; `quantized` (a ggml type's name) is the type of its matrices.

    `loads`: llama.cpp loads it, as a model without a tokenizer.
    """
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_name("Small")
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "bc", "ü" * 3])
    if loads:
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(32)
    shapes = {"token_embd.weight": (32, width), "output_norm.weight": (width,)}
    if not tied:
        shapes["output.weight"] = (32, width)
    for layer in range(layers):
        block = f"blk.{layer}"
        shapes |= {f"{block}.attn_{x}.weight": (width, width) for x in ("q", "k", "v", "output")}
        shapes |= {f"{block}.ffn_{x}.weight": (2 * width, width) for x in ("gate", "up")}
        shapes |= {f"{block}.ffn_down.weight": (width, 2 * width)}
        shapes |= {f"{block}.{x}_norm.weight": (width,) for x in ("attn", "ffn")}
    for name, shape in shapes.items():
        data = random.standard_normal(shape).astype(dtype if len(shape) > 1 else np.float32)
        if quantized is not None and len(shape) > 1:
            kind = gguf.GGMLQuantizationType[quantized.upper()]
            writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_coarse(source: Path, path: Path) -> Path:
    """A model with the last seven of the ten bits of the mantissa of each f16 weight cleared.

    A quantization of a kind, and the same bytes on every machine.
    """
    data = bytearray(source.read_bytes())
    for tensor in gguf.GGUFReader(source).tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.F16:
            start, count = int(tensor.data_offset), int(tensor.n_elements)
            bits = np.frombuffer(data, np.uint16, count, start)
            data[start : start + 2 * count] = (bits & 0xFF80).tobytes()
    path.write_bytes(data)
    return path


def write_bert(
    path: Path,
    *,
    width: int = 64,
    layers: int = 2,
    context: int = 64,
    pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN,
) -> Path:
    """A BERT of random weights with a vocabulary of a few letters, which predicts no next token; by its
    pooling an encoder or a reranker.
    """
    writer = gguf.GGUFWriter(path, "bert")
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefgh",
        *(f"\u2581{letter}" for letter in "abcdefgh"),
    ]
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 5 + [1] * (len(tokens) - 5))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    writer.add_mask_token_id(4)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(tokens), width),
        "position_embd.weight": (context, width),
        "token_types.weight": (2, width),
        "token_embd_norm.weight": (width,),
        "token_embd_norm.bias": (width,),
    }
    if pooling == gguf.PoolingType.RANK:
        writer.add_classifier_output_labels(["relevance"])
        shapes |= {"cls.output.weight": (1, width), "cls.output.bias": (1,)}
    for block in (f"blk.{layer}" for layer in range(layers)):
        square = [(f"attn_{x}", width, width) for x in ("q", "k", "v", "output")]
        for name, rows, columns in [*square, ("ffn_up", 2 * width, width), ("ffn_down", width, 2 * width)]:
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    return _filled(writer, shapes)


def write_t5(path: Path, *, width: int = 64) -> Path:
    """A T5 of random weights, a layer on each side, with a vocabulary of a few letters."""
    writer = gguf.GGUFWriter(path, "t5")
    tokens = ["<pad>", "</s>", "<unk>", *"abcdefgh", *(f"\u2581{letter}" for letter in "abcdefgh")]
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_key_length(width // 4)
    writer.add_value_length(width // 4)
    writer.add_layer_norm_eps(1e-6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_relative_attn_buckets_count(32)
    writer.add_decoder_start_token_id(0)
    writer.add_tokenizer_model("t5")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_token_types([3, 3, 2] + [1] * (len(tokens) - 3))
    writer.add_eos_token_id(1)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(tokens), width),
        "output.weight": (len(tokens), width),
    }
    for side, attentions in (("enc", ("attn",)), ("dec", ("attn", "cross_attn"))):
        block = f"{side}.blk.0"
        shapes |= {f"{side}.output_norm.weight": (width,), f"{block}.ffn_norm.weight": (width,)}
        shapes |= {f"{block}.attn_rel_b.weight": (32, 4)}
        for attention in attentions:
            shapes |= {f"{block}.{attention}_{x}.weight": (width, width) for x in ("q", "k", "v", "o")}
            shapes |= {f"{block}.{attention}_norm.weight": (width,)}
        shapes |= {f"{block}.ffn_{x}.weight": (2 * width, width) for x in ("gate", "up")}
        shapes |= {f"{block}.ffn_down.weight": (width, 2 * width)}
    return _filled(writer, shapes)


def write_projector(path: Path, *, width: int = 64, layers: int = 3, out: int = 96) -> Path:
    """A projector as LLaVA has it, of random weights: pictures of 28 by 28 pixels in four patches."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name("Small")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "image_size": 28,
        "patch_size": 14,
        "embedding_length": width,
        "feed_forward_length": 2 * width,
        "block_count": layers,
        "projection_dim": out,
        "attention.head_count": 4,
    }
    for key, value in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    shapes: dict[str, tuple[int, ...]] = {
        "v.class_embd": (width,),
        "v.patch_embd.weight": (width, 3, 14, 14),
        "v.position_embd.weight": (5, width),
        "v.pre_ln.weight": (width,),
        "v.pre_ln.bias": (width,),
        "mm.0.weight": (out, width),
        "mm.0.bias": (out,),
        "mm.2.weight": (out, out),
        "mm.2.bias": (out,),
    }
    for block in (f"v.blk.{layer}" for layer in range(layers)):
        square = [(f"attn_{x}", width, width) for x in ("q", "k", "v", "out")]
        for name, rows, columns in [*square, ("ffn_up", 2 * width, width), ("ffn_down", width, 2 * width)]:
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
        for name in ("ln1", "ln2"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    return _filled(writer, shapes)


def write_listener(path: Path, *, width: int = 64, layers: int = 2, out: int = 256, stack: int = 100) -> Path:
    """A projector of sounds as Ultravox has it, Whisper's encoder before it, of random weights: every 30
    seconds are 1500 frames, of which `stack` make a vector.
    """
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name("Small")
    writer.add_bool("clip.has_audio_encoder", True)
    writer.add_string("clip.projector_type", "ultravox")
    numbers = {
        "embedding_length": width,
        "feed_forward_length": 2 * width,
        "block_count": layers,
        "projection_dim": out,
        "attention.head_count": 4,
        "num_mel_bins": 80,
        "projector.stack_factor": stack,
    }
    for key, value in numbers.items():
        writer.add_uint32(f"clip.audio.{key}", value)
    writer.add_float32("clip.audio.attention.layer_norm_epsilon", 1e-5)
    shapes: dict[str, tuple[int, ...]] = {
        "a.position_embd.weight": (1500, width),
        "a.conv1d.1.weight": (width, 80, 3),
        "a.conv1d.1.bias": (width, 1),
        "a.conv1d.2.weight": (width, width, 3),
        "a.conv1d.2.bias": (width, 1),
        "a.post_ln.weight": (width,),
        "a.post_ln.bias": (width,),
        "mm.a.norm_pre.weight": (width * stack,),
        "mm.a.mlp.1.weight": (2 * width, width * stack),
        "mm.a.norm_mid.weight": (width,),
        "mm.a.mlp.2.weight": (out, width),
    }
    for block in (f"a.blk.{layer}" for layer in range(layers)):
        square = [(f"attn_{x}", width, width) for x in ("q", "k", "v", "out")]
        for name, rows, columns in [*square, ("ffn_up", 2 * width, width), ("ffn_down", width, 2 * width)]:
            shapes[f"{block}.{name}.weight"] = (rows, columns)
            shapes |= {f"{block}.{name}.bias": (rows,)} if name != "attn_k" else {}
        for name in ("ln1", "ln2"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    return _filled(writer, shapes)


def _filled(writer: gguf.GGUFWriter, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Random values for all tensors, f16 for the layers' matrices; written to the writer's own path."""
    random = np.random.default_rng(1)
    for name, shape in shapes.items():
        plain = len(shape) < 2 or not re.search(r"blk\.|^mm\.", name) or "rel_b" in name
        data = (
            np.ones(shape)
            if re.search(r"(norm|ln\d?)\.weight$", name)
            else 0.05 * random.standard_normal(shape)
        )
        writer.add_tensor(name, data.astype(np.float32 if plain else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(writer.path)


def renamed(source: Path, path: Path, old: str, new: str) -> Path:
    """A GGUF in which one tensor has another name of the same length."""
    data = source.read_bytes()
    assert len(old) == len(new) and data.count(old.encode()) == 1
    path.write_bytes(data.replace(old.encode(), new.encode()))
    return path


def with_values(source: Path, path: Path, **texts: str | None) -> Path:
    """A GGUF with other texts in its metadata (`__` in a name is a dot; None: none), its data the same."""
    header = ggufio.read_header(source)
    kv = dict(header.kv)
    for name, text in texts.items():
        kv.pop(name.replace("__", "."), None)
        if text is not None:
            kv[name.replace("__", ".")] = ggufio.encode_string(text)
    head = ggufio.serialize(kv, [(one.name, one.type_id, one.shape) for one in header.tensors])
    path.write_bytes(head + source.read_bytes()[header.tensors[0].offset :])
    return path


def with_bytes(source: Path, path: Path, tensor: str, data: bytes, at: int = 0) -> Path:
    """A GGUF with other bytes in the data of a tensor, from `at` on."""
    header, whole = ggufio.read_header(source), bytearray(source.read_bytes())
    start = next(one.offset for one in header.tensors if one.name == tensor) + at
    whole[start : start + len(data)] = data
    path.write_bytes(whole)
    return path
