"""A server on loopback: started, waited for, and stopped whatever happens."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from quantmill import signals
from quantmill.errors import QuantmillError
from quantmill.offload import Offload

HOST = "127.0.0.1"

# Both servers take settings from variables of common names (API_KEY, SEED, LLAMA_ARG_...), which would
# change what is measured: they see what a program needs to run, and what chooses and drives a GPU.
_VARIABLES = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_PREFIXES = ("PYTHON", "LC_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "GGML_", "OMP_", "GOMP_")
_LOOK_EVERY_SECONDS = 0.1
_END_SECONDS = 15.0


class Timing(NamedTuple):
    """A streamed answer: seconds to its first piece of text, from there to its last; how many tokens it
    has, and in how many pieces they came; how many were drafted and accepted, as the server counts them.
    """

    first: float
    rest: float
    tokens: int
    pieces: int
    drafted: int = 0
    accepted: int = 0


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def command_of(
    binary: Path | None,
    model: Path,
    *,
    port: int,
    context: int,
    threads: int,
    offload: Offload | None = None,
    fitting: Callable[[], int] = lambda: -1,
    draft: int = 0,
) -> list[str]:
    """The command line of a llama-server, or of llama-cpp-python's server where there is none.

    One sequence of `context` positions, spread as the run wants: by default everything on a GPU where the
    build has one. `fitting` gives the layers that fit, where the run leaves them to us. `draft` is how many
    tokens the model's own head drafts at a time, which only a llama-server does.
    QuantmillError for what llama-cpp-python's server cannot do.
    """
    offload = offload or Offload()
    if binary is not None:
        options = {
            "--n-gpu-layers": str(offload.gpu_layers),
            "--device": ",".join(offload.devices),
            "--tensor-split": ",".join(map(str, offload.tensor_split)),
            "--override-tensor": ",".join(f"{name}={device}" for name, device in offload.tensors.items()),
            "--flash-attn": offload.flash_attention,
            "--batch-size": str(offload.batch or ""),
            "--ubatch-size": str(offload.ubatch or ""),
            "--rpc": ",".join(offload.rpc),
        }
        wanted = [] if offload.is_default else [word for pair in options.items() if pair[1] for word in pair]
        if draft:
            wanted += ["--spec-type", "draft-mtp", "--spec-draft-n-max", str(draft)]
        return [
            str(binary.absolute()),
            "--model",
            str(model),
            "--host",
            HOST,
            "--port",
            str(port),
            "--ctx-size",
            str(context),
            "--parallel",
            "1",
            "--threads",
            str(threads),
            *wanted,
        ]
    for field in ("devices", "tensors", "rpc"):
        if getattr(offload, field):
            raise QuantmillError(
                f"llama-cpp-python's server knows no {field}",
                f"offload.{field}",
                "name a llama-server under bench.served.server",
            )
    layers = offload.gpu_layers if isinstance(offload.gpu_layers, int) else -1
    spread = {
        "--n_gpu_layers": [str(fitting() if offload.gpu_layers == "auto" else layers)],
        "--tensor_split": [str(share) for share in offload.tensor_split],
        "--flash_attn": ["true"] if offload.flash_attention == "on" else [],
        "--n_batch": [str(offload.batch)] if offload.batch else [],
        "--n_ubatch": [str(offload.ubatch)] if offload.ubatch else [],
    }
    return [
        sys.executable,
        "-m",
        "llama_cpp.server",
        "--model",
        str(model),
        "--host",
        HOST,
        "--port",
        str(port),
        "--n_ctx",
        str(context),
        "--n_threads",
        str(threads),
        "--n_threads_batch",
        str(threads),
        "--logits_all",
        "false",
        "--verbose",
        "false",
        *(word for name, values in spread.items() if values for word in (name, *values)),
    ]


def version_of(binary: Path | None) -> str:
    """The server's name and version. QuantmillError where a given one cannot be run."""
    if binary is None:
        from importlib.metadata import version

        return f"llama-cpp-python {version('llama-cpp-python')}"
    try:
        result = subprocess.run(
            [binary.absolute(), "--version"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QuantmillError(
            f"cannot be run ({error})", binary, "name a llama-server, or leave `server` out"
        ) from None
    lines = (result.stdout + result.stderr).splitlines()
    number = next((line for line in lines if line.startswith("version")), "")
    return f"{binary.name} {number}".strip()


class Server:
    """One that answers; `patience` is for each wait for its next word, in seconds."""

    def __init__(
        self, process: subprocess.Popen[bytes], output: IO[bytes], port: int, patience: float
    ) -> None:
        self._process, self._output, self._port, self._patience = process, output, port, patience

    def wait(self) -> None:
        """Wait until it answers. QuantmillError where it ends before, or takes too long."""
        until = time.monotonic() + self._patience
        while self._process.poll() is None:
            if time.monotonic() > until:
                raise self._error(f"no answer on port {self._port} within {self._patience:g} s")
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(HOST, self._port, timeout=5)
                connection.request("GET", "/v1/models")
                if connection.getresponse().status == http.client.OK:
                    return
            time.sleep(_LOOK_EVERY_SECONDS)
        raise self._error(f"{signals.how(self._process.returncode)} before it answered")

    def complete(self, prompt: str, tokens: int, never: list[int]) -> Timing:
        """Have `tokens` tokens generated after `prompt`, greedily, those of `never` left out.

        QuantmillError where the server dies, falls silent or ends the text early.
        """
        request = {
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            # The end of the text is not to come before the last token: by ids, and as llama-server has it.
            "logit_bias": {str(token): -1000.0 for token in never},
            "ignore_eos": True,
            "cache_prompt": False,
        }
        started = time.perf_counter()
        times: list[float] = []
        reason = None
        counted: dict[str, int] = {}
        try:
            for chunk in self._stream(request):
                times.append(time.perf_counter())
                counted = chunk.get("timings") or counted
                reason = chunk["choices"][0].get("finish_reason") or reason
        except TimeoutError:
            raise self._error(f"sent nothing for {self._patience:g} s in mid-run") from None
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            code = self._process.returncode
            how = f"{signals.how(code)} in mid-run" if code is not None else f"broke off ({error!r})"
            raise self._error(how) from None
        if reason != "length":
            raise self._error(f"ended a text before its {tokens} tokens (finish_reason {reason})")
        drafts = counted.get("draft_n", 0), counted.get("draft_n_accepted", 0)
        return Timing(times[0] - started, times[-1] - times[0], tokens, len(times), *drafts)

    def _stream(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed completion that hold a choice."""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=self._patience)
        body = json.dumps(request)
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise ValueError(f"status {answer.status}: {answer.read(200)!r}")
        for line in answer:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if line.startswith(b"data:") and (chunk := json.loads(data)).get("choices"):
                yield chunk
        raise ConnectionError("the stream has no end")

    def _error(self, what: str) -> QuantmillError:
        """The error with the server's last words."""
        self._output.seek(0)
        last = signals.last_words(self._output.read().decode(errors="replace"))
        detail = f" (its last words: {last})" if last else ""
        return QuantmillError(what + detail, "the server", "start it by hand to see why, or leave it out")


def _passed_on(variable: str) -> bool:
    return variable in _VARIABLES or variable.startswith(_PREFIXES)


@contextmanager
def serving(command: list[str], port: int, patience: float) -> Iterator[Server]:
    """A server while the block runs; it is stopped however that ends, a kill of this process among them."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise QuantmillError(
                "the port is in use", f"{HOST}:{port}", "run it again: another one is taken"
            ) from None
    with tempfile.TemporaryFile() as output:
        guarded = [sys.executable, "-m", "quantmill.serve.guard", *command]
        process = subprocess.Popen(
            guarded,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if _passed_on(name)},
        )
        try:
            server = Server(process, output, port, patience)
            server.wait()
            yield server
        finally:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
