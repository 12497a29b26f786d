"""Which weights of a checkpoint become NVFP4, by the names that transformers gives them.

MLP alone: the projections of dense layers, of experts and of shared experts.
Routers, attention of every kind, embeddings, the head, norms, vision, audio
and draft layers (MTP) stay as they are.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from quantmill.checkpoint.safetensors import Checkpoint, Tensor
from quantmill.errors import QuantmillError
from quantmill.nvfp4.values import BLOCK, INFINITY, Bits, as_bits

_MLP = re.compile(
    r"(?P<before>(.+\.)?layers\.(?P<layer>\d+)\.(mlp|block_sparse_moe)(\.shared_experts?|\.experts(\.\d+)?)?)"
    r"\.(?P<projection>(gate|up|down|gate_up)_proj|w[123])(\.weight)?"
)
# Stacks of layers beside the language model's own, by the beginnings of their names.
_BESIDE = re.compile(r"(^|\.)(mtp|vis|audio)")
# Projections that readers fuse, which therefore share one `weight_scale_2`.
_TOGETHER = {"gate_proj", "up_proj", "w1", "w3"}
# Those that take the layer's input; the others take the product of gate and up.
_FIRST = _TOGETHER | {"gate_up_proj"}


@dataclass(frozen=True)
class Part:
    """One matrix to quantize: a tensor, or a stretch of rows of one expert of a fused tensor.

    `module` is its name in the new checkpoint, without `.weight`.
    """

    module: str
    tensor: Tensor
    rows: int
    expert: int = 0
    first: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.tensor.shape[-1]

    def bits(self, checkpoint: Checkpoint) -> Bits:
        """The values' bits, [rows, columns]."""
        shape = self.tensor.shape
        cube = (math.prod(shape[:-2]), *shape[-2:])
        bits = as_bits(checkpoint.data(self.tensor), self.tensor.dtype, cube)
        return bits[self.expert, self.first : self.first + self.rows]


def find(tensors: dict[str, Tensor], layers: int | None) -> list[list[Part]]:
    """The parts to quantize, those that share a `weight_scale_2` together.

    `layers` is the number of the model's layers: what lies beyond is a draft
    layer. QuantmillError, naming the tensor, where NVFP4 cannot hold one, and
    where there is none at all.
    """
    groups: dict[str, list[Part]] = {}
    for tensor in tensors.values():
        match = _MLP.fullmatch(tensor.name)
        if match is None or _BESIDE.search(match["before"]) or len(tensor.shape) < 2:
            continue
        if layers is not None and int(match["layer"]) >= layers:
            continue
        _check(tensor)
        before, projection = match["before"], match["projection"]
        if len(tensor.shape) == 2:
            part = Part(tensor.name.removesuffix(".weight"), tensor, tensor.shape[0])
            key = f"{before}.gate+up" if projection in _TOGETHER else part.module
            groups.setdefault(key, []).append(part)
        else:
            for group in _experts(tensor, before, projection, tensors):
                groups[group[0].module] = group
    if not groups:
        raise QuantmillError(
            "no MLP weights by the names layers.N.mlp.{gate,up,down}_proj",
            "the checkpoint",
            "mfp4 is for language models that have them",
        )
    return list(groups.values())


def inputs_of(groups: list[list[Part]], largest: dict[str, float]) -> dict[str, float]:
    """By module the largest magnitude that enters it, of `largest` by the GGUF's names of the weights.

    Gate and up have one input, so that either's will do, or their fused
    weight's. QuantmillError where there is none that is more than 0.
    """
    inputs = {}
    for part in (part for group in groups for part in group):
        match = _MLP.fullmatch(part.module)
        assert match is not None
        kind = (
            "_shexp"
            if "shared_expert" in match["before"]
            else "_exps"
            if "experts" in match["before"]
            else ""
        )
        sides = ("gate", "up", "gate_up") if match["projection"] in _FIRST else ("down",)
        names = (f"blk.{match['layer']}.ffn_{side}{kind}.weight" for side in sides)
        value = next((largest[name] for name in names if name in largest), 0.0)
        if not value > 0:
            raise QuantmillError(
                "no activation entered it",
                part.module,
                "calibrate on more text, or leave out scheme: W4A4",
            )
        inputs[part.module] = value
    return inputs


def _experts(tensor: Tensor, before: str, projection: str, tensors: dict[str, Tensor]) -> list[list[Part]]:
    """The parts of a fused tensor [experts, rows, columns], named one by one as modelopt exports them."""
    fused, down = (tensors.get(f"{before}.{name}_proj") for name in ("gate_up", "down"))
    shapes = [each.shape for each in (fused, down) if each is not None and len(each.shape) == 3]
    # Some models hold their experts transposed, gate and up interleaved; of those modelopt's form is another.
    known = len(shapes) == 2 and shapes[0] == (shapes[1][0], 2 * shapes[1][2], shapes[1][1])
    if not known or f"{before}.gate_up_proj_bias" in tensors:
        raise QuantmillError(
            f"fused experts of the shape {list(tensor.shape)}, an unknown layout",
            tensor.name,
            "mfp4 takes gate_up_proj [experts, 2 x width, hidden] with down_proj [experts, hidden, width]",
        )
    rows = tensor.shape[1]
    if projection == "down_proj":
        return [
            [Part(f"{before}.{expert}.down_proj", tensor, rows, expert)] for expert in range(tensor.shape[0])
        ]
    halves = (("gate_proj", 0), ("up_proj", rows // 2))
    return [
        [Part(f"{before}.{expert}.{name}", tensor, rows // 2, expert, first) for name, first in halves]
        for expert in range(tensor.shape[0])
    ]


def _check(tensor: Tensor) -> None:
    if tensor.dtype not in INFINITY:
        raise QuantmillError(
            f"is {tensor.dtype}: quantized already", tensor.name, "take the checkpoint in BF16 or F16"
        )
    if tensor.shape[-1] % BLOCK:
        raise QuantmillError(
            f"rows of {tensor.shape[-1]} values, no multiple of {BLOCK}",
            tensor.name,
            "NVFP4 cannot hold them",
        )
    if len(tensor.shape) > 3 or 0 in tensor.shape:
        raise QuantmillError(f"has the shape {list(tensor.shape)}", tensor.name, "NVFP4 cannot hold it")


def unchanged_modules(tensors: Iterable[Tensor], quantized: Collection[str]) -> list[str]:
    """The modules with a weight of two dimensions or more that stays as it is; `lm_head` always.

    (A tied head has no tensor, and readers make the module all the same.)
    """
    names = {tensor.name.removesuffix(".weight") for tensor in tensors if len(tensor.shape) > 1}
    return sorted((names | {"lm_head"}) - set(quantized))


def exclude_list(unchanged: Iterable[str], quantized: Iterable[str]) -> list[str]:
    """`unchanged` in few patterns, as modelopt writes them: `prefix*` where no quantized module begins so."""
    beginnings = {name[:end] for name in quantized for end in range(len(name) + 1)}
    patterns = set()
    for name in unchanged:
        prefixes = [name[: dot.start()] for dot in re.finditer(r"\.", name)]
        shorter = (
            prefix + ("*" if prefix not in beginnings else ".*")
            for prefix in prefixes
            if f"{prefix}." not in beginnings
        )
        patterns.add(next(shorter, name))
    return sorted(patterns)


def excluded(names: Iterable[str], patterns: list[str]) -> set[str]:
    """Those of the modules that vLLM's modelopt loader would leave alone: by wildcard, or by any part."""
    if not patterns:
        return set()
    wild = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
    inside = re.compile("|".join(re.escape(pattern) for pattern in patterns))
    return {name for name in names if wild.match(name) or inside.search(name)}
