"""What llama.cpp itself would quantize each tensor to: its own dry run, in a child process.

`llama_model_quantize` with `dry_run` takes tens of milliseconds and writes
nothing, but says what it decides in its log alone, and native code may abort
the process on a broken model. So `python -m quantmill.engine.dryrun` runs it,
reads the log lines, and prints JSON; `dry_run` calls that and takes its word.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantmill import signals
from quantmill.engine import library
from quantmill.errors import QuantmillError

_F16, _BF16 = 1, 32  # LLAMA_FTYPE_MOSTLY_*
_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_CONTINUED = 5  # GGML_LOG_LEVEL_CONT

# "[   3/ 272] blk.0.attn_q.weight    - [ 576, 576, 1, 1], type =   q4_1, size = 0.2 MiB -> 0.3 MiB (q5_0)"
_TENSOR: Final = re.compile(
    r"\[ *\d+/ *(\d+)\] (.+?) +- \[[\d, ]+\], type = +(\w+), size = [^(]*(?:\((\w+)\))?\s*"
)
# "warning: blk.0.attn_q - ncols 576 not divisible by 256 (required for type q4_K) -> falling back to q5_0"
_FALLBACK: Final = re.compile(
    r"warning: (.+?) +- ncols +\d+ not divisible by +\d+ \(required for type +(\w+)\) .*-> falling back to .*"
)

_SPLIT: Final = re.compile(r"-00001-of-\d{5}\.gguf$")


@dataclass(frozen=True)
class Mixture:
    """What llama.cpp decides for a model and a preset.

    `types`: the type of every tensor by name; `fallbacks`: the type that was
    requested where another had to be taken; `quantizable`: the names of the
    tensors that llama.cpp would ever quantize.
    """

    types: dict[str, str]
    fallbacks: dict[str, str]
    quantizable: frozenset[str]


def dry_run(path: Path, file_type: int, *, imatrix: bool, where: object = None) -> Mixture:
    """The mixture of the preset numbered `file_type` (llama_ftype) for the model at `path`.

    `imatrix` says whether there will be one: having any changes some mixtures.
    Of a split model `path` is the first part; its tensors must stand in llama.cpp's
    own order (by layer, then by name), for they are taken as they stand.
    QuantmillError with llama.cpp's own words where it refuses the model; `where` is
    named in it, by default the path.
    """
    library.check("mainline")
    command = [
        sys.executable,
        "-m",
        "quantmill.engine.dryrun",
        os.fspath(path),
        str(file_type),
        str(int(imatrix)),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        message = signals.last_words(done.stderr)
        message = (
            f"{signals.how(done.returncode)} ({message})" if done.returncode < 0 or not message else message
        )
        raise QuantmillError(
            f"llama.cpp cannot plan this model: {message}", where or path, "check that llama.cpp loads it"
        )
    mixture = json.loads(done.stdout)
    return Mixture(mixture["types"], mixture["fallbacks"], frozenset(mixture["quantizable"]))


def parse_log(log: str) -> tuple[dict[str, str], dict[str, str]]:
    """(types, fallbacks) by tensor name from the log of a dry run."""
    types: dict[str, str] = {}
    fallbacks: dict[str, str] = {}
    expected = -1
    for line in log.splitlines():
        if tensor := _TENSOR.fullmatch(line):
            expected = int(tensor[1])
            types[tensor[2]] = tensor[4] or tensor[3]
        elif fallback := _FALLBACK.fullmatch(line):
            fallbacks[fallback[1]] = fallback[2]
    if len(types) != expected:
        raise QuantmillError(
            f"llama.cpp's dry run tells of {len(types)} tensors where {expected} were expected",
            cure="install the llama-cpp-python version that this release pins",
        )
    return types, fallbacks


def _run(path: str, file_type: int, imatrix: bool) -> tuple[dict[str, str], dict[str, str]]:
    """One native dry run, in this process."""
    import ctypes

    native = library.bindings("mainline")

    log: list[str] = []
    errors: list[str] = []

    def listen(level: int, text: bytes, _: object) -> None:
        line = text.decode(errors="replace")
        log.append(line)
        if level == _ERROR or (level == _CONTINUED and errors):
            errors.append(line)

    callback = native.llama_log_callback(listen)
    native.llama_log_set(callback, None)
    params = native.llama_model_quantize_default_params()
    params.ftype, params.dry_run, params.nthread = file_type, True, 1
    params.keep_split = _SPLIT.search(path) is not None
    # an array that is its own terminator: there is an imatrix, and it is empty
    nothing = native.llama_model_imatrix_data()
    if imatrix:
        params.imatrix = ctypes.pointer(nothing)
    failed = native.llama_model_quantize(os.fsencode(path), b"", ctypes.byref(params))
    if failed:
        message = " ".join("".join(errors).split()) or "no reason given"
        raise QuantmillError(message.replace("llama_model_quantize: failed to quantize: ", ""))
    return parse_log("".join(log))


def main(path: str, file_type: int, imatrix: bool) -> None:
    """Print the mixture as JSON.

    A tensor is quantizable where asking for F16 and for BF16 gives it another type.
    """
    types, fallbacks = _run(path, file_type, imatrix)
    f16, bf16 = _run(path, _F16, imatrix)[0], _run(path, _BF16, imatrix)[0]
    quantizable = [name for name in types if f16[name] != bf16[name]]
    print(json.dumps({"types": types, "fallbacks": fallbacks, "quantizable": quantizable}))


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1")
    except QuantmillError as error:
        sys.exit(str(error))
