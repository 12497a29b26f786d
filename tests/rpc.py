"""An RPC server of ggml on loopback: a device whose buffers are not host memory, without a GPU."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple


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
    command = [sys.executable, "-m", "quantmill.engine.rpc", "--port", str(port), "--threads", str(threads)]
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
