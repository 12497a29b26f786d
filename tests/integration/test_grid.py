"""A source on a grid, from its manifest to a file whose values are the source's, by the rules' commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

import grids
from quantmill import spec
from quantmill.files import read_json

FACTS: dict[str, Any] = {"imatrix": None}


def run(folder: Path, stage: str, config: Any, **options: object) -> subprocess.CompletedProcess[str]:
    made = spec.make(stage, config, {"model": "m"}, engine="e")
    words = [sys.executable, "-m", "quantmill", stage, "--spec", made, "--model", "qat.gguf"]
    words += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def stage(folder: Path, name: str, config: Any, **options: object) -> None:
    done = run(folder, name, config, **options)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on the grid of q4_0, all but one of its tensors, and its manifest."""
    folder = tmp_path_factory.mktemp("grid")
    ordinary = iter([True])

    def change(values: grids.Floats) -> grids.Floats:
        return values if next(ordinary, False) else grids.to_q4_0(values)

    grids.write(folder / "qat.gguf", change)
    stage(folder, "model.manifest", {}, manifest="m.tsv", facts="m.json", threads=2)
    return folder


def quantized(folder: Path, name: str, base: str, **keep: str) -> dict[str, np.ndarray]:
    """The values of the tensors of a file."""
    (folder / f"{name}.yaml").write_text(f"base: {base}\n", encoding="utf-8")
    plan = {"plan": f"{name}.tsv", "report": f"{name}.json"}
    grids_option = {"grids": "m.tsv"} if keep else {}
    stage(
        folder,
        "recipe.plan",
        {"recipe": name, **FACTS, **keep},
        recipe=f"{name}.yaml",
        **plan,
        **grids_option,
    )
    options = {"manifest": "m.tsv", "gguf": f"{name}.gguf", "facts": f"{name}.facts.json", "store": "store"}
    stage(folder, "quantize.write", FACTS | keep, **plan, **options, threads=2)
    return values_of(folder / f"{name}.gguf")


def as_bf16(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def values_of(path: Path) -> dict[str, np.ndarray]:
    return {
        t.name: gguf.dequantize(t.data, t.tensor_type)
        if t.tensor_type.name != "BF16"
        else t.data.view(ml_dtypes.bfloat16).astype(np.float32)
        for t in gguf.GGUFReader(path).tensors
    }


def test_what_is_kept_has_the_sources_values_and_the_rest_does_as_ever(folder: Path) -> None:
    source = values_of(folder / "qat.gguf")
    kept = quantized(folder, "kept", "Q4_0", keep="grid")
    plain = quantized(folder, "plain", "Q4_0")
    report = read_json(folder / "kept.json")
    assert report["kept"] == {"q4_0": 15} and read_json(folder / "m.json")["grids"] == {"q4_0": 15}
    changed = {
        name
        for name, values in kept.items()
        if values.ndim > 1 and not np.array_equal(as_bf16(values), source[name].reshape(values.shape))
    }
    assert changed == {"output.weight"}
    assert np.array_equal(kept["output.weight"], plain["output.weight"])
    name = "blk.0.attn_q.weight"
    assert not np.array_equal(plain[name], source[name].reshape(plain[name].shape))


def test_the_same_bytes_for_any_number_of_threads(folder: Path) -> None:
    quantized(folder, "one", "Q4_0", keep="grid")
    first = (folder / "one.gguf").read_bytes()
    options = {"plan": "one.tsv", "report": "one.json", "manifest": "m.tsv"}
    options |= {"gguf": "two.gguf", "facts": "two.facts.json", "store": "other"}
    stage(folder, "quantize.write", FACTS | {"keep": "grid"}, **options, threads=1)
    assert (folder / "two.gguf").read_bytes() == first


def test_a_source_on_no_grid_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    bare = "\n".join("\t".join(line.split("\t")[:10]) for line in (folder / "m.tsv").read_text().splitlines())
    (tmp_path / "bare.tsv").write_text(bare + "\n", encoding="utf-8")
    options = {"recipe": "kept.yaml", "plan": "no.tsv", "report": "no.json", "grids": tmp_path / "bare.tsv"}
    (folder / "kept.yaml").write_text("base: Q4_0\n", encoding="utf-8")
    done = run(folder, "recipe.plan", {"recipe": "no", **FACTS, "keep": "grid"}, **options)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1] == (
        "error: kept.yaml: keep: grid, and no tensor of the source lies on the grid of a type; "
        "leave `keep` out, or delete manifest.tsv where an earlier version made it"
    )
    assert not (folder / "no.json").exists()


def test_a_manifest_that_claims_a_grid_is_not_believed(folder: Path, tmp_path: Path) -> None:
    """The values are held against the source when they are packed."""
    lines = (folder / "m.tsv").read_text("utf-8").splitlines()
    claimed = [f"{line}q4_0" if line.startswith("output.weight") else line for line in lines]
    (tmp_path / "claimed.tsv").write_text("\n".join(claimed) + "\n", encoding="utf-8")
    (folder / "claimed.yaml").write_text("base: Q4_0\n", encoding="utf-8")
    plan = {"plan": "claimed-plan.tsv", "report": "claimed.json"}
    config = {"recipe": "claimed", **FACTS, "keep": "grid"}
    stage(folder, "recipe.plan", config, recipe="claimed.yaml", **plan, grids=tmp_path / "claimed.tsv")
    options = {"manifest": tmp_path / "claimed.tsv", "gguf": "claimed.gguf", "facts": "claimed.facts.json"}
    done = run(
        folder, "quantize.write", FACTS | {"keep": "grid"}, **plan, **options, store="store", threads=1
    )
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1] == (
        "error: output.weight: lies not on the grid of q4_0; delete manifest.tsv to have it looked at again"
    )
    assert not (folder / "claimed.gguf").exists()
    assert json.loads((folder / "claimed.json").read_text("utf-8"))["kept"] == {"q4_0": 16}
