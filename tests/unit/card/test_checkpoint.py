"""The card of an exported checkpoint: front matter, figures and commands from its report."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard

from quantmill.card import checkpoint

ERROR = {"matrices": 6, "mean": 0.0951, "max": 0.1102, "name": "model.layers.0.mlp.up_proj"}
REPORT: dict[str, Any] = {
    "recipe": "MFP4",
    "form": "modelopt",
    "quant_algo": "W4A16_NVFP4",
    "calibration": None,
    "architectures": ["LlamaForCausalLM"],
    "layers": 2,
    "parameters": 1_000_000,
    "quantized_parameters": 750_000,
    "bpw": 7.42,
    "bytes": 930_000,
    "files": [{"file": "model.safetensors", "bytes": 920_000, "sha256": "ab" * 32}],
    "dtypes": {"U8": {"tensors": 6, "bytes": 375_000}, "BF16": {"tensors": 9, "bytes": 500_000}},
    "source": {"bytes": 2_000_000, "files": ["model.safetensors"], "dtypes": {}},
    "exclude": ["lm_head"],
    "error": ERROR,
    "by_role": {"up_proj": ERROR},
    "quantized": [{}] * 6,
}
CONFIG: dict[str, Any] = {
    "model": "small",
    "card": {"license": "mit", "base_model": "me/Small"},
    "toolchain": {"quantmill": "0.1.0"},
}


def test_the_card_says_what_the_report_does() -> None:
    card = checkpoint.render(REPORT, CONFIG)
    data = ModelCard(card).data
    assert (data.license, data.base_model, data.base_model_relation) == ("mit", "me/Small", "quantized")
    assert {"nvfp4", "vllm"} <= set(data.tags)
    for text in (
        "# Small NVFP4",
        "6 of the model's weight matrices as NVFP4",
        "7.42 bits per parameter",
        "1,000,000, 75.0 % of them as NVFP4, in 2 layers",
        "9.51 % in the mean, 11.02 % at most",
        "vllm serve ./small-MFP4",
        "| U8 | 6 | 366.2 KiB | 42.9 % |",
        "`" + "ab" * 32 + "`",
        "was not measured here",
    ):
        assert text in card, text
    assert "None" not in card and "weights only (W4A16, W4A16_NVFP4)" in card and "Activations" not in card
    calibration = {"corpus": "calibration", "chunks": 128, "context": 512}
    card = checkpoint.render(REPORT | {"quant_algo": "NVFP4", "calibration": calibration}, CONFIG)
    assert "as NVFP4, and activations too where the model runs (W4A4, NVFP4), for" in card
    assert "on 128 chunks of 512 tokens of calibration" in card and "weights only" not in card
