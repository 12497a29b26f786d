"""What a model needs beside its weights: the cache of its context, recurrent states, compute buffers.

From the header alone, for one sequence with flash attention and windows at
their width (no `--swa-full`), as llama.cpp allocates it (src/llama-kv-cache.cpp, llama-kv-cache-iswa.cpp,
llama-memory-recurrent.cpp, llama-hparams.cpp of llama-cpp-python 0.3.36). The
cache and the states are exact; the compute buffer is an estimate. What sparse
attention keeps besides (indexers of DeepSeek 3.2 and its kin) is not counted.
"""

from __future__ import annotations

import argparse
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Final

from quantmill import command
from quantmill.devices import CACHES as TABLE_CACHES
from quantmill.devices import DEVICES, RESERVE
from quantmill.errors import QuantmillError
from quantmill.formats.allocation import PLAN
from quantmill.formats.ggufio import Header
from quantmill.formats.settings import Memory as Settings
from quantmill.formats.source import MEMORY, MemoryFit, MemoryRow
from quantmill.formats.source import Memory as Tables
from quantmill.formats.types import known, named
from quantmill.model.header import read_source
from quantmill.model.roles import layer_of, role_of
from quantmill.progress import Log

UBATCH: Final = 512
"""Tokens that llama.cpp computes at a time by default."""

CACHES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""The types that a cache can have: `kv_cache_types` of llama.cpp's common/arg.cpp."""

CONTEXTS: Final = (4096, 8192, 16384, 32768, 65536, 131072)
"""The contexts of the tables where the user names none."""

_PAD: Final = 256  # cells; GGML_PAD of n_ctx and of the window's cache

# load_swa_pattern of src/models/*.cpp: every so many layers one has full attention, the last or the first.
_LAYERS_APART: Final = """
    2   gemma2 gpt-oss
    4   llama4 exaone4 exaone-moe cohere2 olmo2 afmoe mellum muse-glimmer
    5   gemma3n
    6   gemma3
    8   plamo3
    -4  smallthinker cohere2moe laguna
"""
_PATTERNS: Final = {
    architecture: int(every)
    for every, *architectures in map(str.split, _LAYERS_APART.strip().split("\n"))
    for architecture in architectures
}
_WINDOWS: Final = {"gemma2": 4096, "exaone4": 4096, "exaone-moe": 128, "smallthinker": 4096, "llama4": 8192}
_ATTENTION: Final = frozenset(("attn_k", "attn_v", "attn_kv_a_mqa", "attn_kv_b", "attn_k_b"))
_PATTERN: Final = "attention.sliding_window_pattern"
_STATE: Final = ("ssm_", "shortconv.", "time_mix_")


@dataclass(frozen=True)
class Memory:
    """Bytes beside the weights: cache of keys and values, recurrent states, compute buffers."""

    kv: int
    state: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.kv + self.state + self.compute


def needs(header: Header, context: int, cache: str = "f16") -> Memory:
    """What `context` tokens with a cache of the type `cache` take. QuantmillError for another type."""
    kind = named(cache)
    if kind not in CACHES:
        raise QuantmillError(f"no cache can have the type {cache}", cure="take one of " + ", ".join(CACHES))
    return Memory(kv_bytes(header, context, kind), state_bytes(header), compute_bytes(header, context))


def tables(
    header: Header,
    sizes: Mapping[str, int],
    contexts: Sequence[int] | None,
    projectors: Mapping[str, int] | None = None,
) -> Tables:
    """The memory tables of files of `sizes` bytes, by name: `memory.json` of docs/files.md. `projectors` are
    the sizes of those that may stand beside each.

    `contexts` (tokens) are the user's; those that the model was not trained for are
    left out, and its own is taken where none is left.
    """
    small = _for_caches(header)
    own = _number(header, "context_length") or CONTEXTS[-1]
    lengths = sorted({context for context in contexts or CONTEXTS if context <= own}) or [own]
    taken = {(context, kind): needs(small, context, kind) for context in lengths for kind in TABLE_CACHES}
    total = cache(lambda kind, context: needs(small, context, kind).total)
    devices = [(gb << 30, kind) for gb in DEVICES for kind in TABLE_CACHES]

    def fits(size: int) -> list[MemoryFit]:
        return [
            {
                "total_bytes": device,
                "cache": kind,
                "context": longest(own, device - RESERVE - size, partial(total, kind)),
            }
            for device, kind in devices
        ]

    report: Tables = {
        "contexts": lengths,
        "context_length": own,
        "reserve_bytes": RESERVE,
        "recipes": {
            name: {
                "rows": [_row(size, context, kind, memory) for (context, kind), memory in taken.items()],
                "fits": fits(size),
            }
            for name, size in sizes.items()
        },
    }
    for name, table in report["recipes"].items() if projectors else ():
        table["projectors"] = [
            {"file": file, "bytes": more, "fits": fits(sizes[name] + more)}
            for file, more in (projectors or {}).items()
        ]
    return report


def longest(own: int, room: int, total: Callable[[int], int]) -> int:
    """The longest context in `room` bytes, a multiple of 256 tokens, at most the model's `own`; 0 for none.

    `total` says what a context takes.
    """
    steps = range(_PAD, own + 1, _PAD) or range(own, own + 1)
    count = bisect_right(steps, room, key=total)
    return steps[count - 1] if count else 0


def _row(size: int, context: int, kind: str, memory: Memory) -> MemoryRow:
    return {
        "context": context,
        "cache": kind,
        "file_bytes": size,
        "cache_bytes": memory.kv + memory.state,
        "compute_bytes": memory.compute,
        "total_bytes": size + memory.total,
    }


def _for_caches(header: Header) -> Header:
    """The header with those of its tensors alone that these sizes hang on: of 100,000 the experts do not."""
    roles = _ATTENTION | {"attn_qkv", "token_embd"}
    tensors = (t for t in header.tensors if role_of(t.name) in roles or _recurrent({role_of(t.name)}))
    return replace(header, tensors=tuple(tensors))


def kv_bytes(header: Header, context: int, cache: str = "f16") -> int:
    """Bytes of the cache: only layers that have one, those with a window at its width."""
    cells = _padded(context)
    window = _window(header)
    in_window = _padded(min(cells, window + min(UBATCH, cells)))
    kind = known(cache)
    mla = bool(_number(header, "attention.key_length_mla") and _number(header, "attention.value_length_mla"))
    total = 0
    for layer in _attention_layers(header):
        sliding = window > 0 and _slides(header, layer)
        keys, values = _head_lengths(header, sliding)
        heads = _of_layer(header, "attention.head_count_kv", layer, _heads(header, layer))
        elements = heads * (keys if mla else keys + values) * (in_window if sliding else cells)
        total += elements * kind.block_bytes // kind.block_elements
    return total


def state_bytes(header: Header) -> int:
    """Bytes of the recurrent states of one sequence, F32; 0 for a model that has none."""
    width = _number(header, "embedding_length")
    kernel = _number(header, "ssm.conv_kernel")
    inner, state = _number(header, "ssm.inner_size"), _number(header, "ssm.state_size")
    groups = _number(header, "ssm.group_count")
    if head := _number(header, "wkv.head_size"):
        each = _number(header, "token_shift_count", 2) * width + width * head
    elif short := _number(header, "shortconv.l_cache"):
        each = width * (short - 1)
    elif head := _number(header, "kda.head_dim"):
        heads = _heads(header, 0)
        each = 3 * (max(kernel, 4) - 1) * heads * head + head * head * heads
    else:
        each = max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner
    return 4 * each * len(_state_layers(header))


def compute_bytes(header: Header, context: int) -> int:
    """An estimate of the buffers of a computation of 512 tokens: the widest of three moments.

    At the output the logits; in a layer the mask of the whole context, the
    hidden states and the feed-forward's; in a recurrent layer its inputs. The
    multiples are fitted to what llama.cpp allocates for four small models on a
    CPU, which a test holds within a tenth.
    """
    tokens = min(UBATCH, _padded(context))
    width = _number(header, "embedding_length")
    vocabulary = _vocabulary(header)
    wide = _feed_forward(header)
    inner, state = _number(header, "ssm.inner_size"), _number(header, "ssm.state_size")
    mixed = inner + 2 * _number(header, "ssm.group_count") * state if _state_layers(header) else 0
    at_output = 4 * tokens * (vocabulary + 2 * width)
    in_layer = 2 * tokens * _padded(context) + 4 * tokens * (4 * width + 3 * wide)
    in_recurrent = 4 * tokens * (6 * mixed + 2 * width)
    return max(at_output, in_layer, in_recurrent) + 4 * vocabulary


def _feed_forward(header: Header) -> int:
    """The widest feed-forward that a token passes: the dense one, or its experts' together."""
    dense = max(_list(header, "feed_forward_length"), default=0)
    experts = max(_list(header, "expert_used_count"), default=0)
    each = max(_list(header, "expert_feed_forward_length"), default=0)
    return max(dense, experts * (each or dense) if experts else 0)


def _vocabulary(header: Header) -> int:
    embeddings = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    return embeddings.shape[1] if embeddings and len(embeddings.shape) > 1 else 0


def _roles(header: Header) -> dict[int, set[str]]:
    """The roles of each layer's tensors, without the layers of multi-token prediction."""
    layers = header.evaluated
    roles: dict[int, set[str]] = defaultdict(set)
    for tensor in header.tensors:
        if 0 <= layer_of(tensor.name) < layers:
            roles[layer_of(tensor.name)].add(role_of(tensor.name))
    return roles


def _attention_layers(header: Header) -> list[int]:
    """The layers that have a cache of their own: some share that of an earlier one."""
    first = header.layers - _number(header, "attention.shared_kv_layers")
    first = 20 if header.architecture == "gemma3n" else first
    return [
        layer
        for layer, roles in sorted(_roles(header).items())
        if layer < first and (roles & _ATTENTION or ("attn_qkv" in roles and not _recurrent(roles)))
    ]


def _state_layers(header: Header) -> list[int]:
    return [layer for layer, roles in _roles(header).items() if _recurrent(roles)]


def _recurrent(roles: set[str]) -> bool:
    return any(role.startswith(_STATE) for role in roles)


def _head_lengths(header: Header, sliding: bool) -> tuple[int, int]:
    """Length of a head's keys, and of its values."""
    usual = _number(header, "embedding_length") // max(_heads(header, 0), 1)
    lengths = []
    for what in ("key_length", "value_length"):
        length = _number(header, f"attention.{what}", usual)
        lengths.append(_number(header, f"attention.{what}_swa", length) if sliding else length)
    return lengths[0], lengths[1]


def _window(header: Header) -> int:
    """Tokens of the sliding window, 0 where all layers see all of the context."""
    architecture = header.architecture
    given = _number(header, "attention.sliding_window", -1)
    if architecture == "phi3" or given == 0:  # llama.cpp leaves Phi's windows out
        return 0
    if architecture == "llama4":
        return _WINDOWS[architecture]
    if architecture not in _PATTERNS and not _has(header, _PATTERN):
        return 0
    return given if given > 0 else _WINDOWS.get(architecture, 0)


def _slides(header: Header, layer: int) -> bool:
    """Whether the layer sees the window alone."""
    pattern: int | list[int] = _PATTERNS.get(header.architecture, 1)
    if _has(header, _PATTERN):
        pattern = header.numbers(f"{header.architecture}.{_PATTERN}")
    if isinstance(pattern, list):
        return layer < len(pattern) and bool(pattern[layer])
    period = abs(pattern)
    if _PATTERNS.get(header.architecture, 1) < 0:
        return layer % period != 0
    return period == 0 or layer % period < period - 1


def _heads(header: Header, layer: int) -> int:
    return _of_layer(header, "attention.head_count", layer, 0)


def _of_layer(header: Header, key: str, layer: int, default: int) -> int:
    """A value of a layer: some models give one for all. QuantmillError where the list ends before it."""
    value = header.numbers(f"{header.architecture}.{key}", default)
    if not isinstance(value, list):
        return value
    if layer >= len(value):
        what = f"{header.architecture}.{key} of the metadata has {len(value)} values, none for layer {layer}"
        raise QuantmillError(what, header.path, "the file is damaged, download it again")
    return value[layer]


def _number(header: Header, key: str, default: int = 0) -> int:
    return header.number(f"{header.architecture}.{key}") if _has(header, key) else default


def _list(header: Header, key: str) -> list[int]:
    value = header.numbers(f"{header.architecture}.{key}")
    return value if isinstance(value, list) else [value]


def _has(header: Header, key: str) -> bool:
    return f"{header.architecture}.{key}" in header.kv


def _padded(cells: int) -> int:
    return -(-cells // _PAD) * _PAD


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `model.memory`."""
    plans = [PLAN.read(path) for path in args.plans]
    sizes = {plan["recipe"]: plan["file_bytes"] for plan in plans}
    config: Settings = args.spec["config"]
    beside = [PLAN.read(path)["file_bytes"] for path in args.projectors or []]
    projectors = dict(zip(config.get("projectors", []), beside, strict=True))
    report = tables(read_source(args.model), sizes, config["contexts"], projectors)
    MEMORY.write(args.out, report)
    log.say(f"{len(sizes)} files at {len(report['contexts'])} contexts")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument(
        "--model", type=Path, required=True, help="the source, its header, or manifest.tsv"
    )
    arguments.add_argument("--plans", type=Path, nargs="+", required=True, help="the plans' JSON files")
    arguments.add_argument("--projectors", type=Path, nargs="*", help="those of the projectors' plans")
    arguments.add_argument("--out", type=Path, required=True, help="memory.json")
    command.run(arguments, main)
