"""Digests of what llama.cpp's converter makes of NVFP4 checkpoints: nvfp4-gguf.json beside this file.

    python tests/data/golden_nvfp4.py LLAMA.gguf MOE.gguf

The two are convert_hf_to_gguf.py's (llama-cpp-python 0.3.36) of the MFP4 exports
of the trained models that tests/data/make.py cuts the tests' models from; the
same layers and experts are taken here.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

import gguf

HERE = Path(__file__).parent
EXPERTS = 4


def digests(path: str, layers: list[int]) -> dict[str, str]:
    """Shape and 16 hex digits of the sha256 of each nvfp4 tensor and each second scale."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    result = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|scale)", name)
        if block is None or int(block[1]) not in layers or f"blk.{block[1]}.{block[2]}.scale" not in tensors:
            continue
        shape, data = [int(n) for n in tensor.shape], tensor.data.tobytes()
        if block[2].endswith("_exps"):
            data, shape = data[: len(data) * EXPERTS // shape[-1]], [*shape[:-1], EXPERTS]
        cut = f"blk.{layers.index(int(block[1]))}.{block[2]}.{block[3]}"
        result[cut] = f"{tensor.tensor_type.name.lower()} {shape} {hashlib.sha256(data).hexdigest()[:16]}"
    return dict(sorted(result.items()))


if __name__ == "__main__":
    made = {"tiny-llama": digests(sys.argv[1], [0, 1]), "tiny-moe": digests(sys.argv[2], [2, 3])}
    (HERE / "nvfp4-gguf.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
