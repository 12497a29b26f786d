"""The section `offload` of config.yaml: how models are spread over GPUs and the machine's memory."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt

from quantmill.config.fields import Count, Strict
from quantmill.config.refusal import refuse

_ENDPOINT: Final = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:/]+):(\d{1,5})")


def _endpoint(text: str) -> str:
    match = _ENDPOINT.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        raise refuse("endpoint", f"{text} is no host:port, such as gpu-box:50052", "")
    return text


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise refuse("pattern", f"{text} is no regular expression ({error})", "") from None
    return text


class Offload(Strict):
    """How a model is spread over devices. It changes the last bits of a result, and makes nothing stale."""

    gpu_layers: Literal["all", "auto"] | NonNegativeInt = Field(
        default="all",
        description="the layers on GPUs, the output counting as one; `all`; `auto`: as many as fit into the "
        "memory that is free there",
    )
    devices: list[str] = Field(
        default=[],
        description="the devices that are used, as llama.cpp names them (CUDA0, Vulkan1, RPC0); default: all "
        "GPUs",
    )
    tensor_split: list[NonNegativeFloat] = Field(
        default=[], description="the share of each device, in their order; default: by their free memory"
    )
    tensors: dict[Annotated[str, AfterValidator(_pattern)], str] = Field(
        default={},
        description="the device of the tensors that a regular expression matches, such as `{exps: CPU}`; the "
        "first that matches decides",
    )
    flash_attention: Literal["auto", "on", "off"] = Field(
        default="auto", description="llama.cpp's flash attention; auto: where the device has it"
    )
    batch: Annotated[int, Field(ge=512)] | None = Field(
        default=None,
        description="the most tokens evaluated at once, at least 512, of several chunks where these are "
        "shorter; default: 512",
    )
    ubatch: Count | None = Field(
        default=None, description="the most tokens that a device computes at once; default: as batch"
    )
    gpus: Count | None = Field(
        default=None,
        description="how many devices a job takes, so that several jobs run at once (`snakemake --resources "
        "gpu=4`); default: all",
    )
    rpc: list[Annotated[str, AfterValidator(_endpoint)]] = Field(
        default=[], description="llama.cpp's `rpc-server`s, each host:port, whose devices are used too"
    )

    def settings(self) -> dict[str, Any]:
        """What a stage reads of it (`quantmill.offload.Offload`)."""
        return self.model_dump(exclude_defaults=True)
