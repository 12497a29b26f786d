"""Plans against what llama-quantize really writes: types and file size, for every preset."""

from pathlib import Path

import numpy as np
import pytest

import models
import native
from quantmill.model.ggufio import read_header
from quantmill.recipe import presets, rules
from quantmill.recipe.plan import report, resolve


@pytest.fixture(scope="module", params=[256, 320])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose rows fit blocks of 256, and one whose rows do not."""
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    return models.write_llama(path, width=request.param, layers=1, tied=False)


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_a_plan_is_what_llama_quantize_writes(source: Path, tmp_path: Path, preset: str) -> None:
    header, recipe = read_header(source), rules.parse(f"base: {preset}", "r.yaml")
    if preset == "Q1_0" and header.value("llama.embedding_length") % 128:
        pytest.skip("q1_0 has no fallback: llama.cpp refuses it")
    mixture = presets.mixture(header, recipe.base, imatrix=True)
    plan = resolve(header, recipe, mixture, imatrix=True, where="r.yaml")
    npz, out = tmp_path / "imatrix.npz", tmp_path / "out.gguf"
    np.savez(npz, **{t.name: np.ones(t.shape[0], np.float32) for t in header.tensors if len(t.shape) == 2})
    native.quantize(source, out, presets.PRESETS[preset], None, npz)
    made = read_header(out)
    assert [(t.name, t.type, t.bytes) for t in made.tensors] == [(r.name, r.type, r.bytes) for r in plan.rows]
    # the tests' own run names no imatrix in the header, so the size is compared without
    assert report(header, plan, "R", None)["file_bytes"] == out.stat().st_size
