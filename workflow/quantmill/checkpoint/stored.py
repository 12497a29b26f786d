"""Weights that a checkpoint stores quantized: they are converted with their scales, or not at all.

llama.cpp's converter multiplies by scales where config.json names a method that it knows (`dequant_model` of
conversion/base.py). A weight of FP8 or of packed integers that has no such scale it reads as plain numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from quantmill.checkpoint.safetensors import Checkpoint, Tensor
from quantmill.errors import QuantmillError

_FP8: Final = ("F8_E4M3", "F8_E5M2")
_INTEGERS: Final = ("I8", "U8", "I32")
_PACKED: Final = (".weight", ".qweight", ".weight_packed", "_blocks")
# What the name of a weight of FP8 becomes in that of its scale, by method.
_SCALES: Final = {
    "fp8": ((".weight", ".weight_scale_inv"), (".weight", ".qscale_weight"), ("", "_scale_inv")),
    "compressed-tensors": ((".weight", ".weight_scale"),),
    "modelopt": ((".weight", ".weight_scale"),),
}
_CURE: Final = "take the checkpoint in BF16, or a GGUF of it"


def method_of(folder: Path, config: dict[str, Any]) -> str | None:
    """How the weights are quantized, as the checkpoint's configs name it; None where none does."""
    inner = config.get("text_config")
    for one in (config, inner if isinstance(inner, dict) else {}):
        quantization = one.get("quantization_config")
        if isinstance(quantization, dict) and quantization.get("quant_method"):
            return str(quantization["quant_method"])
    return "modelopt" if (folder / "hf_quant_config.json").exists() else None


def refuse_raw(source: Checkpoint, config: dict[str, Any]) -> None:
    """QuantmillError where weights are quantized and the converter would not multiply by their scales."""
    method = method_of(source.folder, config)
    if bare := [tensor for tensor in source.tensors.values() if _lacks_scale(source, tensor, method)]:
        what = f"{bare[0].name} and {len(bare) - 1} more are" if bare[1:] else f"{bare[0].name} is"
        why = f"of method {method}" if method else "and config.json names no quant_method"
        what = f"{what} {bare[0].dtype} {why}, without a scale that the converter applies"
        raise QuantmillError(what, source.folder, _CURE)


def _lacks_scale(source: Checkpoint, tensor: Tensor, method: str | None) -> bool:
    if tensor.dtype in _FP8:
        endings = [pair for pair in _SCALES.get(method or "", ()) if tensor.name.endswith(pair[0])]
        return not any(tensor.name.removesuffix(old) + new in source.tensors for old, new in endings)
    return method is None and tensor.dtype in _INTEGERS and tensor.name.endswith(_PACKED)
