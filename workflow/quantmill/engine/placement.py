"""Which device has which part of a model: llama.cpp's parameters for it, and what it made of them.

A run says what it wants (`quantmill.offload`). `auto` layers are tried out without memory: llama.cpp loads a
model's header, says how large each buffer would be, and allocates none.
"""

from __future__ import annotations

import ctypes as c
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from quantmill.engine import library
from quantmill.engine.claims import claim
from quantmill.errors import QuantmillError
from quantmill.formats.devices import Part, Placement
from quantmill.formats.ggufio import read_header
from quantmill.offload import Offload

_GPU: Final = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU of ggml-backend.h
_SPARE: Final = 256 << 20
"""Bytes of a device that `auto` leaves free: for its driver's own, and whatever else comes to run there."""
_CONNECT_SECONDS: Final = 10.0

# "load_tensors:        CUDA0 model buffer size =   256.63 MiB", and the same with KV, RS, compute, output.
_BUFFER: Final = re.compile(r"\s(\S+)\s+(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")
_KINDS: Final = {"model": "weights", "KV": "cache", "RS": "cache", "compute": "compute", "output": "compute"}


@dataclass(frozen=True)
class Device:
    """A device as ggml sees it; memory in bytes. `buffers` is the name of what is allocated on it."""

    pointer: int
    name: str
    description: str
    free: int
    buffers: str


class Parameters:
    """llama.cpp's parameters for what a run wants. They live as long as this does.

    QuantmillError where a device is not there, where there are more layers wanted than the model has, or a
    regular expression matches none of its tensors.
    """

    def __init__(self, offload: Offload, path: Path) -> None:
        self._kept: list[Any] = []
        self._offload, self._path = offload, path
        connect(offload.rpc)
        self.devices = _chosen(offload)
        if offload.gpus:
            self.devices = claim(self.devices, offload.gpus)
        self.layers: int = -1
        if offload.is_default:
            return
        if not self.devices and isinstance(offload.gpu_layers, int) and offload.gpu_layers > 0:
            what = f"gpu_layers is {offload.gpu_layers}, and llama.cpp sees no GPU here"
            cure = "build it for one (CMAKE_ARGS=-DGGML_CUDA=ON make -B env), or leave gpu_layers out"
            raise QuantmillError(what, "offload", cure)
        if offload.tensor_split and len(offload.tensor_split) != len(self.devices):
            what = f"tensor_split has {len(offload.tensor_split)} shares for {len(self.devices)} devices"
            raise QuantmillError(what, "offload", f"the devices are {_names(self.devices)}")
        check(offload, path)
        if isinstance(offload.gpu_layers, int):
            self.layers = offload.gpu_layers

    def of_model(self, params: Any) -> None:
        """Set those of loading."""
        if self._offload.is_default:
            return
        params.n_gpu_layers = self.layers
        pointers = (c.c_void_p * (len(self.devices) + 1))(*(device.pointer for device in self.devices))
        params.devices = c.addressof(pointers)
        self._kept.append(pointers)
        if self._offload.tensor_split:
            most = library.load("llama").llama_max_devices
            most.restype = c.c_size_t
            shares = (c.c_float * most())(*self._offload.tensor_split)
            params.tensor_split = c.cast(shares, type(params.tensor_split))
            self._kept.append(shares)
        if self._offload.tensors:
            overrides = (_Override * (len(self._offload.tensors) + 1))()
            for entry, (pattern, name) in zip(overrides, self._offload.tensors.items(), strict=False):
                entry.pattern, entry.type = pattern.encode(), _buffer_type(name, self.devices)
            params.tensor_buft_overrides = c.addressof(overrides)
            self._kept.append(overrides)

    def of_context(self, params: Any) -> None:
        """Set those of a context."""
        params.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[self._offload.flash_attention]

    def fit(self, simulated: Callable[[int], list[str]]) -> None:
        """Choose the number of layers where the run leaves it to us: as many as fit.

        `simulated` gives llama.cpp's log of a number of layers for which nothing is allocated.
        """
        if self._offload.gpu_layers != "auto" or not self.devices:
            return
        least, most = 0, read_header(self._path, data=False).layers + 1
        while least < most:
            middle = (least + most + 1) // 2
            if self._fits(buffers(simulated(middle))):
                least = middle
            else:
                most = middle - 1
        self.layers = least

    def _fits(self, taken: dict[str, dict[str, int]]) -> bool:
        return bool(taken) and all(
            sum(taken.get(device.buffers, {}).values()) + _SPARE <= device.free for device in self.devices
        )

    def placement(self, lines: Iterable[str], layers: int) -> Placement | None:
        """Where the model is, by llama.cpp's log of loading it; None where all of it is on the CPU.

        `layers`: how many the model has, the output counting as one.
        """
        taken = buffers(lines)
        parts: list[Part] = [
            {
                "device": device.name,
                "description": device.description,
                "weights": taken[device.buffers].get("weights", 0),
                "cache": taken[device.buffers].get("cache", 0),
                "compute": taken[device.buffers].get("compute", 0),
            }
            for device in self.devices
            if device.buffers in taken
        ]
        if not parts:
            return None
        return {
            "layers": layers if self.layers < 0 else min(self.layers, layers),
            "of": layers,
            "devices": parts,
        }


class _Override(c.Structure):
    """`struct llama_model_tensor_buft_override` of llama.h."""

    _fields_ = (("pattern", c.c_char_p), ("type", c.c_void_p))


def check(offload: Offload, path: Path) -> None:
    """QuantmillError where a model cannot be spread so, by its header."""
    header = read_header(path, data=False)
    layers = offload.gpu_layers
    if isinstance(layers, int) and layers > header.layers + 1:
        what = f"gpu_layers is {layers}, the model has {header.layers + 1} with its output"
        raise QuantmillError(what, f"offload, {path.name}", "give fewer, or `all`")
    for pattern in offload.tensors:
        if not any(re.search(pattern, tensor.name) for tensor in header.tensors):
            what = f"{pattern} matches no tensor of the model"
            cure = (
                f"its tensors are named like {header.tensors[-1].name}" if header.tensors else "leave it out"
            )
            raise QuantmillError(what, f"offload.tensors, {path.name}", cure)


def buffers(lines: Iterable[str]) -> dict[str, dict[str, int]]:
    """The bytes of weights, cache and computation by the name of what was allocated, from llama.cpp's log."""
    taken: dict[str, dict[str, int]] = {}
    for line in lines:
        if match := _BUFFER.search(line):
            kinds = taken.setdefault(match[1], {})
            kind = _KINDS[match[2]]
            kinds[kind] = kinds.get(kind, 0) + round(float(match[3]) * 2**20)
    return taken


def connect(endpoints: Iterable[str]) -> None:
    """Make the devices of RPC servers known. QuantmillError where none answers: llama.cpp would abort."""
    for endpoint in endpoints:
        _connect(endpoint)


@cache
def _connect(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        what = f"no RPC server answers ({error.strerror or error})"
        cure = "start `rpc-server` there, or leave it out of offload.rpc"
        raise QuantmillError(what, endpoint, cure) from None
    base = _lib()
    rpc = base.ggml_backend_reg_by_name(b"RPC")
    add = base.ggml_backend_reg_get_proc_address(rpc, b"ggml_backend_rpc_add_server") if rpc else None
    if not add:
        raise QuantmillError(
            "this llama.cpp was built without RPC", "offload.rpc", "run `make -B env`, without -DGGML_RPC=OFF"
        )
    register = c.CFUNCTYPE(c.c_void_p, c.c_char_p)(add)(endpoint.encode())
    if not register:
        raise QuantmillError("the RPC server has no devices", endpoint, "leave it out of offload.rpc")
    base.ggml_backend_register(register)


def present() -> list[Device]:
    """All GPUs, the RPC servers' devices first, as llama.cpp takes them."""
    base = _lib()
    found = []
    for number in range(base.ggml_backend_dev_count()):
        device = base.ggml_backend_dev_get(number)
        if base.ggml_backend_dev_type(device) in _GPU:
            free, total = c.c_size_t(), c.c_size_t()
            base.ggml_backend_dev_memory(device, c.byref(free), c.byref(total))
            name = base.ggml_backend_dev_name(device).decode()
            description = base.ggml_backend_dev_description(device).decode()
            buffers_name = base.ggml_backend_buft_name(base.ggml_backend_dev_buffer_type(device)).decode()
            found.append(Device(device, name, description, free.value, buffers_name))
    return sorted(found, key=lambda device: not device.name.startswith("RPC"))


def first(offload: Offload) -> Device | None:
    """The first of the GPUs that a run wants; None where all is on the CPU."""
    connect(offload.rpc)
    there = _chosen(offload) if offload.gpu_layers != 0 else []
    return there[0] if there else None


def backend() -> str:
    """What computes: the GPUs' own descriptions where ggml sees any, else `CPU`."""
    if library.in_use() == "ik":
        return "CPU"  # its package is built for no other
    return ", ".join(device.description for device in present()) or "CPU"


def _chosen(offload: Offload) -> list[Device]:
    there = present()
    if not offload.devices:
        return there
    by_name = {device.name: device for device in there}
    missing = [name for name in offload.devices if name not in by_name]
    if missing:
        raise QuantmillError(
            f"no device {missing[0]} is here", "offload.devices", f"there are {_names(there)}"
        )
    return [by_name[name] for name in offload.devices]


def _names(devices: list[Device]) -> str:
    return ", ".join(f"{device.name} ({device.description})" for device in devices) or "no GPUs"


def _buffer_type(name: str, devices: list[Device]) -> int:
    base = _lib()
    if name == "CPU":
        return int(base.ggml_backend_cpu_buffer_type())
    pointer = next((device.pointer for device in devices if device.name == name), None)
    if pointer is None:
        raise QuantmillError(
            f"no device {name} is here", "offload.tensors", f"there are CPU and {_names(devices)}"
        )
    return int(base.ggml_backend_dev_buffer_type(pointer))


@cache
def _lib() -> c.CDLL:
    """The library with ggml's list of devices; the functions of its base are found through it too."""
    lib = library.load("ggml")
    base = library.load("ggml-base")
    pointer, text, size = c.c_void_p, c.c_char_p, c.c_size_t
    declared: dict[str, tuple[c.CDLL, Any, list[Any]]] = {
        "ggml_backend_dev_count": (lib, size, []),
        "ggml_backend_dev_get": (lib, pointer, [size]),
        "ggml_backend_reg_by_name": (lib, pointer, [text]),
        "ggml_backend_register": (lib, None, [pointer]),
        "ggml_backend_reg_get_proc_address": (base, pointer, [pointer, text]),
        "ggml_backend_dev_type": (base, c.c_int, [pointer]),
        "ggml_backend_dev_name": (base, text, [pointer]),
        "ggml_backend_dev_description": (base, text, [pointer]),
        "ggml_backend_dev_memory": (base, None, [pointer, pointer, pointer]),
        "ggml_backend_dev_buffer_type": (base, pointer, [pointer]),
        "ggml_backend_buft_name": (base, text, [pointer]),
        "ggml_backend_cpu_buffer_type": (base, pointer, []),
    }
    for name, (where, result, arguments) in declared.items():
        function = getattr(where, name)
        function.restype, function.argtypes = result, arguments
        setattr(lib, name, function)
    return lib
