"""The two forms in which readers take NVFP4: modelopt's, and that of compressed-tensors.

Codes and block scales are the same bytes. The names differ, the tensor's scale
(compressed-tensors has its reciprocal, as a vector of one), and what
config.json says: modelopt leaves modules out by patterns, compressed-tensors
by their names. Sources: modelopt 0.47's export; `NVFP4PackedCompressor` and
`NVFP4A16` of compressed-tensors 0.20.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.checkpoint.modules import Part, exclude_list, excluded
from quantmill.checkpoint.safetensors import Tensor
from quantmill.errors import QuantmillError
from quantmill.files import read_json, write_json
from quantmill.nvfp4.values import BLOCK

CONFIG, QUANT_CONFIG = "config.json", "hf_quant_config.json"
ALGORITHM = "W4A16_NVFP4"
# Loaders of hf_quant_config.json refuse any other name; the version is the one whose bytes these are.
PRODUCER = {"name": "modelopt", "version": "0.47.0"}
_PACKED = "nvfp4-pack-quantized"


@dataclass(frozen=True)
class Form:
    """A form: the names of codes, block scales and scale; the scale's shape; whether it is the reciprocal."""

    name: str
    suffixes: tuple[str, str, str]
    shape: tuple[int, ...]
    reciprocal: bool

    def outputs(self, part: Part) -> tuple[Tensor, Tensor, Tensor]:
        """The three tensors that stand for a matrix: codes, block scales, scale."""
        (rows, columns), file = part.shape, part.tensor.file
        codes, scales, scale = (f"{part.module}.{suffix}" for suffix in self.suffixes)
        return (
            Tensor(codes, "U8", (rows, columns // 2), file),
            Tensor(scales, "F8_E4M3", (rows, columns // BLOCK), file),
            Tensor(scale, "F32", self.shape, file),
        )

    def stored(self, scale: np.float32) -> np.float32:
        """What is stored of a scale, and the scale of what is stored: either way the same."""
        return np.float32(1) / scale if self.reciprocal else scale

    def write(
        self, folder: Path, config: dict[str, Any], kept: Collection[str], quantized: Collection[str]
    ) -> list[str]:
        """Write the configs of a checkpoint in this form; what they say is left as it was."""
        ignore = sorted(kept) if self.reciprocal else exclude_list(kept, quantized)
        write_configs(self, folder, config, ignore)
        return ignore

    def check(self, folder: Path, quantized: list[str], kept: list[str]) -> None:
        """QuantmillError unless the configs mean `kept` and nothing of `quantized`, by the reader's rules."""
        inner = read_json(folder / CONFIG)["quantization_config"]
        if self.reciprocal:
            ignored = set(inner["ignore"]) & {*quantized, *kept}
        else:
            outer = read_json(folder / QUANT_CONFIG)["quantization"]
            if inner["ignore"] != outer["exclude_modules"] or inner["quant_algo"] != outer["quant_algo"]:
                raise _wrong("differ in what they say of the quantization", "the two configs", folder)
            # vLLM sees fused modules too: whatever says `gate_proj` is looked up as `gate_up_proj` as well.
            fused = {name.replace("gate_proj", "gate_up_proj") for name in quantized}
            ignored = excluded({*fused, *quantized, *kept}, inner["ignore"])
        wrong = ignored - set(kept) or set(kept) - ignored
        if wrong:
            raise _wrong("stands wrongly with the exclude list", min(wrong), folder)


MODELOPT = Form("modelopt", ("weight", "weight_scale", "weight_scale_2"), (), reciprocal=False)
COMPRESSED = Form(
    "compressed-tensors", ("weight_packed", "weight_scale", "weight_global_scale"), (1,), reciprocal=True
)
FORMS = {form.name: form for form in (MODELOPT, COMPRESSED)}


def write_configs(form: Form, folder: Path, config: dict[str, Any], ignore: list[str]) -> None:
    """config.json with its quantization_config; modelopt's loaders look at hf_quant_config.json too."""
    quantization = _modelopt(ignore) if form is MODELOPT else _compressed(ignore)
    text = json.dumps(config | {"quantization_config": quantization}, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n")
    if form is MODELOPT:
        outer = {
            "quant_algo": ALGORITHM,
            "kv_cache_quant_algo": None,
            "group_size": BLOCK,
            "exclude_modules": ignore,
        }
        write_json(folder / QUANT_CONFIG, {"producer": PRODUCER, "quantization": outer})


def _modelopt(ignore: list[str]) -> dict[str, Any]:
    weights = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": BLOCK}
    return {
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        "ignore": ignore,
        "quant_algo": ALGORITHM,
        "producer": PRODUCER,
        "quant_method": "modelopt",
    }


def _compressed(ignore: list[str]) -> dict[str, Any]:
    weights = {
        "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": BLOCK, "symmetric": True,
        "dynamic": False,
    }  # fmt: skip
    group = {
        "weights": weights, "input_activations": None, "output_activations": None, "targets": ["Linear"],
        "format": _PACKED,
    }  # fmt: skip
    return {
        "config_groups": {"group_0": group},
        "format": _PACKED,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _wrong(what: str, name: str, folder: Path) -> QuantmillError:
    return QuantmillError(f"{name} {what}", folder, "nothing was kept; look at that tensor in the source")
