"""Layers that fit, and llama.cpp's log of its buffers."""

from pathlib import Path

import pytest

from quantmill.engine import placement
from quantmill.engine.llama import cure_of
from quantmill.engine.placement import Device, Parameters, buffers
from quantmill.offload import Offload

MODEL = Path(__file__).parents[2] / "data" / "tiny-llama.gguf"
MIB = 1 << 20
LOG = [
    "load_tensors:   CPU_Mapped model buffer size =     1.00 MiB\n",
    "load_tensors:        CUDA0 model buffer size =     4.50 MiB\n",
    "llama_context:  CUDA_Host  output buffer size =     0.01 MiB\n",
    "llama_kv_cache:      CUDA0 KV buffer size =     0.25 MiB\n",
    "llama_memory_recurrent:      CUDA0 RS buffer size =     0.25 MiB\n",
    "sched_reserve:      CUDA0 compute buffer size =     1.50 MiB\n",
    "load_tensors: RPC0[host:1] model buffer size =     2.00 MiB\n",
]


def test_buffers_are_read_from_the_log() -> None:
    taken = buffers(LOG)
    assert taken["CUDA0"] == {"weights": 4.5 * MIB, "cache": 0.5 * MIB, "compute": 1.5 * MIB}
    assert taken["RPC0[host:1]"] == {"weights": 2 * MIB}


@pytest.mark.parametrize(
    ("free", "layers"), [(0, 0), (256 + 1, 0), (256 + 2, 1), (256 + 3, 2), (256 + 4, 3), (1000, 3)]
)
def test_as_many_layers_as_fit(monkeypatch: pytest.MonkeyPatch, free: int, layers: int) -> None:
    """A layer takes 1 MiB here, and what is computed another; 256 MiB stay free."""
    device = Device(1, "CUDA0", "a GPU", free * MIB, "CUDA0")
    monkeypatch.setattr(placement, "present", lambda: [device])
    parameters = Parameters(Offload(gpu_layers="auto"), MODEL)

    def simulated(count: int) -> list[str]:
        return [
            f"load_tensors: CUDA0 model buffer size = {count}.00 MiB",
            "sched_reserve: CUDA0 compute buffer size = 1.00 MiB",
        ]

    parameters.fit(simulated)
    assert parameters.layers == layers
    placed = parameters.placement(LOG, 3)
    assert placed is not None
    assert (placed["layers"], placed["of"]) == (layers, 3)


def test_a_context_that_cannot_be_made_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "present", lambda: [Device(1, "CUDA0", "a GPU", 1 << 40, "CUDA0")])
    parameters = Parameters(Offload(gpu_layers="auto"), MODEL)
    parameters.fit(lambda _: [])
    assert parameters.layers == 0


def test_a_model_without_room_on_a_device_is_told_what_to_do() -> None:
    message = "llama_model_load: error loading model: unable to allocate CUDA0 buffer"
    assert cure_of(message).startswith("it has no room there: set `offload: {gpu_layers: auto}`")
    assert cure_of("invalid magic") == "check the file"
