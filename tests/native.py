"""llama.cpp's own `llama_model_quantize`, in a child process: it aborts where it does not like its input.

`python tests/native.py SOURCE OUT FTYPE TYPE|- IMATRIX.npz|- OVERRIDES` quantizes
SOURCE to OUT with the file type FTYPE, every tensor overridden to the ggml TYPE,
with the importance values [matrices * columns] that the npz holds by tensor
name. OVERRIDES is JSON: [pattern, type's number] of each, in place of TYPE.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantmill.formats.types import TYPES


def quantize(
    source: Path,
    out: Path,
    ftype: int,
    type_id: int | None,
    imatrix: Path | None,
    overrides: Sequence[str] = (),
) -> None:
    """Run it, with `pattern=type` overrides; fails with what llama.cpp said."""
    pairs = [line.rsplit("=", 1) for line in overrides]
    numbered = json.dumps([[pattern, TYPES[kind].id] for pattern, kind in pairs])
    words = [source, out, ftype, "-" if type_id is None else type_id, imatrix or "-", numbered]
    done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _main(source: str, out: str, ftype: str, type_id: str, imatrix: str, numbered: str) -> int:
    from llama_cpp import llama_cpp as native

    params = native.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.allow_requantize = 2, int(ftype), True
    if type_id != "-":
        expected = int(type_id)
        params.output_tensor_type = params.token_embedding_type = expected
        overrides = (native.llama_model_tensor_override * 2)()
        overrides[0].pattern, overrides[0].type = b".*", expected
        params.tt_overrides = overrides
    given = json.loads(numbered)
    if given:
        overrides = (native.llama_model_tensor_override * (len(given) + 1))()
        for slot, (pattern, number) in zip(overrides, given, strict=False):
            slot.pattern, slot.type = pattern.encode(), number
        params.tt_overrides = overrides
    if imatrix != "-":
        arrays = {k: np.ascontiguousarray(v, np.float32) for k, v in np.load(imatrix).items()}
        data = (native.llama_model_imatrix_data * (len(arrays) + 1))()
        for slot, (name, values) in zip(data, arrays.items(), strict=False):
            slot.name, slot.size = name.encode(), values.size
            slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = data
    return int(native.llama_model_quantize(source.encode(), out.encode(), params))


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
