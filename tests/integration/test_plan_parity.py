"""Plans against what llama-quantize really writes: types and file size, for every preset."""

from pathlib import Path

import numpy as np
import pytest

import models
import native
from quantmill.formats.ggufio import read_header
from quantmill.recipe import presets, rules
from quantmill.recipe.plan import report, resolve

# Rows of 256 fit every block; of 320, only those of 32 and 64.
CASES = [(256, preset) for preset in presets.PRESETS]
CASES += [(320, preset) for preset in ("Q6_K", "Q4_K_M", "Q3_K_M", "IQ2_XS", "TQ1_0", "Q2_0")]


@pytest.mark.parametrize(("width", "preset"), CASES)
def test_a_plan_is_what_llama_quantize_writes(tmp_path: Path, width: int, preset: str) -> None:
    source = models.write_llama(tmp_path / "m.gguf", width=width, layers=1, tied=False)
    header, recipe = read_header(source), rules.parse(f"base: {preset}", "r.yaml")
    mixture = presets.mixture(header, recipe.base, imatrix=True)
    plan = resolve(header, recipe, mixture, imatrix=True, where="r.yaml")
    npz, out = tmp_path / "imatrix.npz", tmp_path / "out.gguf"
    np.savez(npz, **{t.name: np.ones(t.shape[0], np.float32) for t in header.tensors if len(t.shape) == 2})
    native.quantize(source, out, presets.PRESETS[preset], None, npz)
    made = read_header(out)
    assert [(t.name, t.type, t.bytes) for t in made.tensors] == [(r.name, r.type, r.bytes) for r in plan.rows]
    # the tests' own run names no imatrix in the header, so the size is compared without
    assert report(header, plan, "R", None)["file_bytes"] == out.stat().st_size
