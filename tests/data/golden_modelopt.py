"""Digests of what modelopt makes of the checkpoints of tests/checkpoints.py: modelopt.json beside this file.

    python tests/checkpoints.py FOLDER
    python tests/data/golden_modelopt.py FOLDER

The second runs in an environment of its own with nvidia-modelopt 0.47.0, torch
2.13.0 (CPU), transformers 5.23.0 and requests (1.4 GB), which nothing else needs.
"""

import copy
import hashlib
import json
import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
from modelopt.torch.export import export_hf_checkpoint
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent


def digests(folder: Path) -> dict[str, str]:
    """Dtype, shape and 16 hex digits of the sha256 of each tensor of an export."""
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    found = {}
    for name, entry in header.items():
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        sha256 = hashlib.sha256(data[start:end]).hexdigest()[:16]
        found[name] = f"{entry['dtype']} {entry['shape']} {sha256}"
    return dict(sorted(found.items()))


def export(source: Path, target: Path) -> None:
    """MLP only, weights only, blocks of 16."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    config = copy.deepcopy(mtq.NVFP4_MLP_ONLY_CFG)
    config["quant_cfg"] = [rule for rule in config["quant_cfg"] if "input_quantizer" not in str(rule)]
    export_hf_checkpoint(mtq.quantize(model, config, forward_loop=None), export_dir=target)


if __name__ == "__main__":
    golden = {}
    for source in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
        target = source.parent / "exported" / source.name
        export(source, target)
        quantization = json.loads((target / "config.json").read_text())["quantization_config"]
        golden[source.name] = {"quantization_config": quantization, "tensors": digests(target)}
    (HERE / "modelopt.json").write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
