"""Serves this machine's devices to the runs of others: `offload: {rpc: [host:port]}` there.

What llama.cpp's `rpc-server` does, which its Python package does not bring along. Whoever reaches the port
may use the devices: there is no password. One client at a time.
"""

from __future__ import annotations

import argparse
import ctypes as c
import sys
from typing import Final

from quantmill import machine
from quantmill.engine import library
from quantmill.engine.placement import present
from quantmill.errors import QuantmillError

_CPU: Final = 0  # GGML_BACKEND_DEVICE_TYPE_CPU


def serve(endpoint: str, threads: int) -> None:
    """Serve the GPUs, or where there is none the CPU, until the process ends.

    QuantmillError where the address cannot be used.
    """
    pointers = [device.pointer for device in present()] or [_cpu()]
    devices = (c.c_void_p * len(pointers))(*pointers)
    start = library.load("ggml-rpc").ggml_backend_rpc_start_server
    start.restype, start.argtypes = None, [c.c_char_p, c.c_char_p, c.c_size_t, c.c_size_t, c.c_void_p]
    start(endpoint.encode(), None, threads, len(pointers), devices)
    raise QuantmillError("cannot be served", endpoint, "take a free port, and an address of this machine")


def _cpu() -> int:
    by_type = library.load("ggml").ggml_backend_dev_by_type
    by_type.restype, by_type.argtypes = c.c_void_p, [c.c_int]
    return int(by_type(_CPU))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine)")
    arguments.add_argument("--port", type=int, default=50052, help="port (default: 50052)")
    arguments.add_argument("--threads", type=int, default=machine.cores(), help="threads of a CPU")
    given = arguments.parse_args()
    try:
        serve(f"{given.host}:{given.port}", given.threads)
    except QuantmillError as error:
        sys.exit(f"error: {error}")
