"""NVFP4 with its second scales, from the recipe to a file that llama.cpp evaluates."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest

import models
from quantmill import spec
from quantmill.engine.vocabulary import Vocabulary
from quantmill.errors import QuantmillError
from quantmill.measure import divergence
from quantmill.progress import Log
from quantmill.quantize.nvfp4 import Weight, largest
from quantmill.store import Store

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "nvfp4-gguf.json").read_text("utf-8"))
FFN = "base: f16\nrules: [{match: '.*\\.ffn_(gate|up|down)(_exps|_shexp)?\\.weight', type: nvfp4}]\n"


def run(stage: str, config: dict, *arguments: object) -> str:
    """Run a stage; its error, if it fails."""
    command = [sys.executable, "-m", f"quantmill.{stage}", "--spec", spec.make(stage, config, {}, engine="e")]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0 or "Traceback" not in done.stderr
    return "" if done.returncode == 0 else done.stderr.splitlines()[-1]


def made(folder: Path, model: Path, recipe: str, name: str = "x") -> str:
    """Plan and quantize `<name>.gguf` in the folder; the error of quantizing, if it fails."""
    place = {kind: folder / f"{name}.{kind}" for kind in ("yaml", "tsv", "json", "gguf")}
    listed = ("--manifest", folder / "m.tsv")
    assert not run("model.manifest", {}, "--model", model, *listed, "--facts", folder / "m.json")
    place["yaml"].write_text(recipe, encoding="utf-8")
    plan = ("--plan", place["tsv"], "--report", place["json"])
    config = {"recipe": name, "imatrix": None}
    assert not run("recipe.plan", config, "--model", model, "--recipe", place["yaml"], *plan)
    return run(
        "quantize.write",
        {"imatrix": None},
        "--model",
        model,
        *listed,
        *plan,
        "--gguf",
        place["gguf"],
        "--facts",
        folder / f"{name}.gguf.json",
        "--threads",
        2,
        "--store",
        folder / "store",
    )


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    """The tensors of a file, as gguf-py reads them."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("model", GOLDEN)
def test_the_bytes_are_those_of_llama_cpps_converter(tmp_path: Path, model: str) -> None:
    source = DATA / f"{model}.gguf"
    assert not made(tmp_path, source, FFN)
    after, before = tensors(tmp_path / "x.gguf"), tensors(source)
    result = {
        name: f"{tensor.tensor_type.name.lower()} {[int(n) for n in tensor.shape]} "
        + hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16]
        for name, tensor in after.items()
        if name in GOLDEN[model]
    }
    assert result == GOLDEN[model]
    assert after.keys() - before.keys() == {name for name in result if name.endswith(".scale")}
    plan = json.loads((tmp_path / "x.json").read_text("utf-8"))
    assert plan["file_bytes"] == (tmp_path / "x.gguf").stat().st_size
    assert plan["tensors"] == len(after) and plan["warnings"] == []
    assert plan["parameters"] == sum(int(tensor.n_elements) for tensor in before.values())


def test_llama_cpp_loads_it_and_the_second_scale_pays(tmp_path: Path) -> None:
    source = DATA / "tiny-llama.gguf"
    with Vocabulary(source) as vocabulary:
        chunks = vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))[: 4 * 128].reshape(4, 128)
    off = {}
    for name, text in (("scaled", FFN), ("bare", f"scales: false\n{FFN}")):
        assert not made(tmp_path, source, text, name)
        one, other = (
            divergence.Model(path, {"engine": "e", "model": path.name})
            for path in (tmp_path / f"{name}.gguf", source)
        )
        store, log = Store(tmp_path / "measured"), Log(tmp_path / "log")
        off[name] = float(
            divergence.measure(one, other, chunks, threads=1, store=store, log=log)[0].kld.mean()
        )
    assert 0 < off["scaled"] < 0.01
    # what llama-quantize makes: the scales of these weights' blocks are subnormal
    assert off["bare"] > 1.5 * off["scaled"]
    assert not [name for name in tensors(tmp_path / "bare.gguf") if name.endswith(".scale")]


def test_a_quantized_source_is_dequantized_first(tmp_path: Path) -> None:
    source = models.write_llama(tmp_path / "m.gguf", width=128, layers=1, quantized="q8_0", loads=True)
    assert not made(tmp_path, source, "base: q8_0\nrules: [{role: [ffn_up, ffn_down], type: nvfp4}]")
    after, before = tensors(tmp_path / "x.gguf"), tensors(source)
    for role in ("ffn_up", "ffn_down"):
        weight, scale = after[f"blk.0.{role}.weight"], after[f"blk.0.{role}.scale"].data[0]
        values, true = (
            gguf.dequantize(tensor.data, tensor.tensor_type)
            for tensor in (weight, before[f"blk.0.{role}.weight"])
        )
        assert scale == np.float32(np.abs(true).max()) / np.float32(2688)
        assert 0.08 < np.linalg.norm(values * scale - true) / np.linalg.norm(true) < 0.11
    assert after["blk.0.ffn_gate.weight"].tensor_type.name == "Q8_0" and "blk.0.ffn_gate.scale" not in after


def test_what_is_not_finite_is_refused() -> None:
    values = np.ones((2, 64), np.float32)
    values[1, 3] = math.nan
    weight = Weight("blk.0.ffn_up.weight", "", "f32", (64, 2), lambda: values.reshape(-1).view(np.uint8))
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(QuantmillError, match=r"ffn_up\.weight: has values that are not finite; the source"),
    ):
        largest(weight, pool, 1)
