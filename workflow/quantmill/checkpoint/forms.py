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
from quantmill.nvfp4.values import BLOCK, tensor_scale

CONFIG, QUANT_CONFIG = "config.json", "hf_quant_config.json"
# Loaders of hf_quant_config.json refuse any other name; the version is the one whose bytes these are.
PRODUCER = {"name": "modelopt", "version": "0.47.0"}
_PACKED = "nvfp4-pack-quantized"


@dataclass(frozen=True)
class Form:
    """A form: the names of codes, block scales, scale and the input's scale; the scales' shape; whether
    they are reciprocals; whether activations become 4-bit floats too (W4A4), which needs the input's.
    """

    name: str
    suffixes: tuple[str, str, str, str]
    shape: tuple[int, ...]
    reciprocal: bool
    activations: bool = False

    @property
    def algorithm(self) -> str:
        """modelopt's name of what is quantized."""
        return "NVFP4" if self.activations else "W4A16_NVFP4"

    def outputs(self, part: Part) -> list[Tensor]:
        """The tensors that stand for a matrix: codes, block scales, scale, and the input's scale if any."""
        (rows, columns), file = part.shape, part.tensor.file
        codes, scales, scale, input_scale = (f"{part.module}.{suffix}" for suffix in self.suffixes)
        return [
            Tensor(codes, "U8", (rows, columns // 2), file),
            Tensor(scales, "F8_E4M3", (rows, columns // BLOCK), file),
            Tensor(scale, "F32", self.shape, file),
            *([Tensor(input_scale, "F32", self.shape, file)] if self.activations else []),
        ]

    def stored(self, scale: np.float32) -> np.float32:
        """What is stored of a scale, and the scale of what is stored: either way the same."""
        return np.float32(1) / scale if self.reciprocal else scale

    def input_scale(self, largest: float) -> np.float32:
        """What is stored of the input's scale: as of a tensor's, its largest magnitude becomes 6 x 448."""
        return self.stored(tensor_scale(largest))

    def write(
        self, folder: Path, config: dict[str, Any], unchanged: Collection[str], quantized: Collection[str]
    ) -> list[str]:
        """Write the configs of a checkpoint in this form; what they say is left as it was."""
        ignore = sorted(unchanged) if self.reciprocal else exclude_list(unchanged, quantized)
        write_configs(self, folder, config, ignore)
        return ignore

    def check(self, folder: Path, quantized: list[str], unchanged: list[str]) -> None:
        """QuantmillError unless the configs leave out all of `unchanged` and none of `quantized`."""
        inner = read_json(folder / CONFIG)["quantization_config"]
        if self.reciprocal:
            ignored = set(inner["ignore"]) & {*quantized, *unchanged}
        else:
            outer = read_json(folder / QUANT_CONFIG)["quantization"]
            if inner["ignore"] != outer["exclude_modules"] or inner["quant_algo"] != outer["quant_algo"]:
                raise _wrong("differ in what they say of the quantization", "the two configs", folder)
            # vLLM sees fused modules too: whatever says `gate_proj` is looked up as `gate_up_proj` as well.
            fused = {name.replace("gate_proj", "gate_up_proj") for name in quantized}
            ignored = excluded({*fused, *quantized, *unchanged}, inner["ignore"])
        wrong = ignored - set(unchanged) or set(unchanged) - ignored
        if wrong:
            raise _wrong("stands wrongly with the exclude list", min(wrong), folder)


MODELOPT = Form("modelopt", ("weight", "weight_scale", "weight_scale_2", "input_scale"), (), reciprocal=False)
COMPRESSED = Form(
    "compressed-tensors",
    ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"),
    (1,),
    reciprocal=True,
)
FORMS = {form.name: form for form in (MODELOPT, COMPRESSED)}


def write_configs(form: Form, folder: Path, config: dict[str, Any], ignore: list[str]) -> None:
    """config.json with its quantization_config; modelopt's loaders look at hf_quant_config.json too."""
    quantization = (_compressed if form.reciprocal else _modelopt)(form, ignore)
    text = json.dumps(config | {"quantization_config": quantization}, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    if not form.reciprocal:
        outer = {
            "quant_algo": form.algorithm,
            "kv_cache_quant_algo": None,
            "group_size": BLOCK,
            "exclude_modules": ignore,
        }
        write_json(folder / QUANT_CONFIG, {"producer": PRODUCER, "quantization": outer})


def _modelopt(form: Form, ignore: list[str]) -> dict[str, Any]:
    values = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": BLOCK}
    inputs = {"input_activations": values} if form.activations else {}
    return {
        "config_groups": {"group_0": {**inputs, "weights": values, "targets": ["Linear"]}},
        "ignore": ignore,
        "quant_algo": form.algorithm,
        "producer": PRODUCER,
        "quant_method": "modelopt",
    }


def _compressed(form: Form, ignore: list[str]) -> dict[str, Any]:
    weights = {
        "num_bits": 4,
        "type": "float",
        "strategy": "tensor_group",
        "group_size": BLOCK,
        "symmetric": True,
        "dynamic": False,
    }
    # The tensor's scale is fixed, those of the blocks are made where the activations are: `local`.
    inputs = {**weights, "dynamic": "local", "observer": "static_minmax"} if form.activations else None
    group = {
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        "targets": ["Linear"],
        "format": _PACKED,
    }
    return {
        "config_groups": {"group_0": group},
        "format": _PACKED,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _wrong(what: str, name: str, folder: Path) -> QuantmillError:
    return QuantmillError(f"{name} {what}", folder, "no file was written; look at that tensor in the source")
