"""Where llama.cpp has a tensor of a mixture of experts that is on a GPU and a CPU."""

from __future__ import annotations

import re
from typing import Final

from quantmill.model.roles import layer_of

# LLM_FFN_EXPS_REGEX of llama.cpp's common/common.h, behind which `--n-cpu-moe` puts a layer's number.
EXPERTS: Final = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_IS_EXPERTS: Final = re.compile(rf"blk\.\d+{EXPERTS}")
# LLM_TN of what llama.cpp loads to the CPU whatever is asked for: its input layer.
EMBEDDINGS: Final = ("token_embd.weight", "per_layer_token_embd.weight")

GPU: Final = -1
CPU: Final = -2
"""Where what belongs to no expert is; the experts of a layer are known by its number."""


def place_of(name: str) -> int:
    """Where a tensor is: on the GPU, on the CPU, or the number of the layer whose experts it is of."""
    if name in EMBEDDINGS:
        return CPU
    return layer_of(name) if _IS_EXPERTS.match(name) else GPU
