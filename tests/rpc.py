"""An RPC server of ggml on loopback: a device whose buffers are not host memory, without a GPU.

`python tests/rpc.py PORT [THREADS]` serves the CPU until it is killed.
"""

from __future__ import annotations

import ctypes as c
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

_CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU


class Server(NamedTuple):
    """A running server, and where it answers."""

    endpoint: str
    process: subprocess.Popen[bytes]


@contextmanager
def server(threads: int = 2) -> Iterator[Server]:
    """One that answers, killed at the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, str(port), str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        yield Server(f"127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.wait()


def serve(port: int, threads: int) -> None:
    """Serve the CPU."""
    from quantmill.engine import library

    base = library.load("ggml-base")
    ggml = c.CDLL(str(library.path("ggml", "mainline")))
    rpc = c.CDLL(str(library.path("ggml-rpc", "mainline")))
    ggml.ggml_backend_dev_by_type.restype, ggml.ggml_backend_dev_by_type.argtypes = c.c_void_p, [c.c_int]
    base.ggml_backend_dev_name.restype = c.c_char_p
    devices = (c.c_void_p * 1)(ggml.ggml_backend_dev_by_type(_CPU))
    start = rpc.ggml_backend_rpc_start_server
    start.argtypes = [c.c_char_p, c.c_char_p, c.c_size_t, c.c_size_t, c.c_void_p]
    start(f"127.0.0.1:{port}".encode(), None, threads, 1, devices)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int((*sys.argv[2:], "2")[0]))
