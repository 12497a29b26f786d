"""How a run spreads models over devices: the section `offload` of the config, which no spec holds.

What it changes of a result is the last bits alone, as another processor does. So it reaches the stages as the
store does, by a variable of the environment: JSON, by the names of models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

VARIABLE: Final = "QUANTMILL_OFFLOAD"

_chosen: list[Offload] = []


@dataclass(frozen=True)
class Offload:
    """The section, as llama.cpp understands it.

    `gpu_layers`: layers on devices, the output counting as one; `all`; or `auto`, as many as fit.
    `devices`: names of those that are used; none: all that there are. `tensor_split`: the share of each.
    `tensors`: by a regular expression of tensors' names the device that they are on, `CPU` among them.
    `batch`: the most tokens that are evaluated at once, of several chunks where these are shorter;
    `ubatch`: the most that the device computes at once. `rpc`: servers of other machines, host:port.
    `gpus`: how many of the devices this process takes, 0 for all.
    """

    gpu_layers: int | str = "all"
    devices: Sequence[str] = ()
    tensor_split: Sequence[float] = ()
    tensors: Mapping[str, str] = field(default_factory=dict)
    flash_attention: str = "auto"
    batch: int = 0
    ubatch: int = 0
    rpc: Sequence[str] = ()
    gpus: int = 0

    @property
    def is_default(self) -> bool:
        """Whether everything is llama.cpp's own choice."""
        return self == Offload()


def choose(model: str | None) -> None:
    """Decide how this process spreads models: as the environment says of the model of that name."""
    given: dict[str, Any] = json.loads(os.environ.get(VARIABLE) or "{}")
    _chosen[:] = [Offload(**given[model])] if model in given else []


def chosen() -> Offload:
    """What was decided; llama.cpp's defaults where nothing was."""
    return _chosen[0] if _chosen else Offload()
