"""What modelopt makes of the checkpoints of tests/checkpoints.py, and what it sees enter trained MLPs.

    python tests/checkpoints.py FOLDER
    python tests/data/golden_modelopt.py FOLDER MODELS

writes modelopt.json (digests and configs, weights only and with activations)
and modelopt-inputs.json beside this file. MODELS holds the trained checkpoints
that tests/data/make.py cuts its models from: here they are cut alike. The
second runs in an environment of its own with nvidia-modelopt 0.47.0, torch
2.13.0 (CPU), transformers 5.23.0 and requests (1.4 GB), which nothing else needs.
"""

import copy
import hashlib
import json
import struct
import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
LAYERS = {"tiny-llama": [0, 1], "tiny-hybrid-moe": [2, 3]}
CONTEXT, CHUNKS, EXPERTS = 64, 6, 4


def tensors(folder: Path) -> dict[str, tuple[dict, bytes]]:
    """The header's entry and the bytes of each tensor of an export."""
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    places = {name: [8 + size + offset for offset in entry["data_offsets"]] for name, entry in header.items()}
    return {name: (header[name], data[slice(*places[name])]) for name in sorted(header)}


def digests(folder: Path) -> dict[str, str]:
    """Dtype, shape and 16 hex digits of the sha256 of each tensor of an export."""
    return {
        name: f"{entry['dtype']} {entry['shape']} {hashlib.sha256(data).hexdigest()[:16]}"
        for name, (entry, data) in tensors(folder).items()
    }


def export(model: torch.nn.Module, target: Path, tokens: torch.Tensor | None) -> dict:
    """MLP only, blocks of 16: weights alone, or with what enters them; the config that it writes."""
    config = copy.deepcopy(mtq.NVFP4_MLP_ONLY_CFG)
    if tokens is None:
        config["quant_cfg"] = [rule for rule in config["quant_cfg"] if "input_quantizer" not in str(rule)]

    @torch.no_grad()
    def run(calibrated: torch.nn.Module) -> None:
        for row in tokens:
            calibrated(row[None])

    quantized = mtq.quantize(model, config, forward_loop=None if tokens is None else run)
    export_hf_checkpoint(quantized, export_dir=target)
    return json.loads((target / "config.json").read_text("utf-8"))["quantization_config"]


def input_scales(folder: Path) -> dict[str, float]:
    """By module the `input_scale` of an export."""
    return {
        name.removesuffix(".input_scale"): struct.unpack("<f", data)[0]
        for name, (_, data) in tensors(folder).items()
        if name.endswith(".input_scale")
    }


def load(folder: Path) -> torch.nn.Module:
    """A checkpoint in its own precision."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def cut(folder: Path, layers: list[int]) -> torch.nn.Module:
    """A trained model of which some layers are left, and of its experts the first."""
    model = load(folder)
    stored = [model.model.layers[layer] for layer in layers]
    for number, layer in enumerate(stored):
        if hasattr(layer, "self_attn"):
            layer.self_attn.layer_idx = number
        if hasattr(layer, "linear_attn"):
            layer.linear_attn.layer_idx = number
    model.model.layers = torch.nn.ModuleList(stored)
    for mlp in (layer.mlp for layer in stored if hasattr(layer.mlp, "experts")):
        for parameters in (mlp.gate, mlp.experts):
            for name, values in parameters.named_parameters(recurse=False):
                setattr(parameters, name, torch.nn.Parameter(values[:EXPERTS].clone()))
        mlp.gate.num_experts = mlp.experts.num_experts = model.num_experts = EXPERTS
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[layer] for layer in layers]
    return model


def main(small: Path, trained: Path) -> None:
    """Make both files anew."""
    golden = {}
    tokens = torch.arange(64).reshape(2, 32) % 48
    for source in sorted(path for path in small.iterdir() if path.is_dir() and path.name != "exported"):
        weights, both = (source.parent / "exported" / f"{source.name}-{n}" for n in ("W4A16", "W4A4"))
        golden[source.name] = {"quantization_config": export(load(source), weights, None)}
        golden[source.name] |= {"tensors": digests(weights), "W4A4": export(load(source), both, tokens)}
        assert {n: d for n, d in digests(both).items() if "input_scale" not in n} == digests(weights)
        golden[source.name] |= {"input_scales": input_scales(both)}
    (HERE / "modelopt.json").write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(trained / "tiny-llama")((HERE / "text.txt").read_text("utf-8"))[
        "input_ids"
    ]
    chunks = [ids[start : start + CONTEXT] for start in range(0, CHUNKS * CONTEXT, CONTEXT)]
    result: dict = {"tokens": chunks}
    for name, layers in LAYERS.items():
        target = small / "exported" / name
        export(cut(trained / name, layers), target, torch.tensor(chunks))
        result[name] = input_scales(target)
    (HERE / "modelopt-inputs.json").write_text(json.dumps(result, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
