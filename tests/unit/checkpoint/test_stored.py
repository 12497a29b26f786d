"""Quantized weights of a checkpoint are converted with their scales, or refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantmill.checkpoint import stored
from quantmill.checkpoint.safetensors import Checkpoint, Tensor, Writer
from quantmill.errors import QuantmillError

WITHOUT = "without a scale that the converter applies"
CURE = "take the checkpoint in BF16, or a GGUF of it"
FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
PACKED = {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}


def checkpoint(folder: Path, **dtypes: str) -> Checkpoint:
    """A checkpoint of empty tensors by name, their dots written as two underscores."""
    tensors = [Tensor(name.replace("__", "."), kind, (0,), folder) for name, kind in dtypes.items()]
    with Writer(folder / "model.safetensors", tensors) as writer:
        for tensor in tensors:
            writer.put(tensor.name, np.empty(0, np.uint8))
    return Checkpoint(folder)


@pytest.mark.parametrize(
    ("dtypes", "config"),
    [
        ({"a__weight": "BF16", "ids": "I64"}, {}),
        ({"a__weight": "F8_E4M3", "a__weight_scale_inv": "F32"}, FP8),
        ({"a__weight": "F8_E4M3", "a__qscale_weight": "F32"}, FP8),
        ({"e__gate_up_proj": "F8_E4M3", "e__gate_up_proj_scale_inv": "F32"}, FP8),
        ({"a__weight": "F8_E4M3", "a__weight_scale": "F32"}, {"text_config": {**PACKED}}),
        ({"a__weight_packed": "I32", "a__weight_scale": "BF16", "a__weight_shape": "I64"}, PACKED),
        (
            {"e__down_proj_blocks": "U8", "e__down_proj_scales": "U8"},
            {"quantization_config": {"quant_method": "mxfp4"}},
        ),
    ],
)
def test_what_has_its_scales_is_converted(
    tmp_path: Path, dtypes: dict[str, str], config: dict[str, Any]
) -> None:
    stored.refuse_raw(checkpoint(tmp_path, **dtypes), config)


@pytest.mark.parametrize(
    ("dtypes", "config", "what"),
    [
        (
            {"a__weight": "F8_E4M3", "b__weight": "F8_E4M3"},
            FP8,
            f"a.weight and 1 more are F8_E4M3 of method fp8, {WITHOUT}",
        ),
        (
            {"a__weight": "F8_E4M3", "a__weight_scale": "F32"},
            FP8,
            f"a.weight is F8_E4M3 of method fp8, {WITHOUT}",
        ),
        (
            {"a__weight": "F8_E5M2", "a__weight_scale_inv": "F32"},
            {},
            f"a.weight is F8_E5M2 and config.json names no quant_method, {WITHOUT}",
        ),
        (
            {"a__weight_packed": "I32", "a__weight_scale": "BF16"},
            {},
            f"a.weight_packed is I32 and config.json names no quant_method, {WITHOUT}",
        ),
    ],
)
def test_what_would_be_read_as_plain_numbers_is_refused(
    tmp_path: Path, dtypes: dict[str, str], config: dict[str, Any], what: str
) -> None:
    source = checkpoint(tmp_path, **dtypes)
    with pytest.raises(QuantmillError) as refused:
        stored.refuse_raw(source, config)
    assert str(refused.value) == f"{tmp_path}: {what}; {CURE}"


def test_modelopt_has_a_config_of_its_own(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, a__weight="F8_E4M3", a__weight_scale="F32")
    (tmp_path / "hf_quant_config.json").write_text("{}", encoding="utf-8")
    stored.refuse_raw(source, {})
