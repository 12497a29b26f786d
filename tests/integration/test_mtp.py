"""A draft head left out, and in a file of its own, made by the rules' commands and run in llama.cpp."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantmill import spec
from quantmill.engine.llama import load, native
from quantmill.engine.loader import load as evaluator
from quantmill.engine.mtp import Head
from quantmill.files import read_json
from quantmill.formats.ggufio import read_header

MTP = Path(__file__).parents[1] / "data" / "tiny-mtp-Q8_0.gguf"
CONTEXT = 32


class Beside(Head):
    """A model with a head from another file, as llama-server has them with --spec-draft-model."""

    def __init__(self, path: Path, draft: Path, **options: Any) -> None:
        self._draft = draft
        super().__init__(path, **options)

    def _context(self, path: Path, context: int, threads: int, head: bool = False) -> Any:
        if not head:
            return super()._context(path, context, threads)
        loading = native.llama_model_default_params()
        loading.load_mtp = True
        whole, self._model = self._model, load(self._draft, loading)
        made = super()._context(self._draft, context, threads, head=True)
        self._model = whole
        return made


def run(folder: Path, stage: str, config: Any, **options: object) -> None:
    made = spec.make(stage, config, {"model": "m"}, engine="e")
    words = [sys.executable, "-m", "quantmill", stage, "--spec", made]
    words += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def made(folder: Path, name: str, mtp: str) -> Path:
    """The file of a recipe of q8_0, which the source has already: every tensor is the source's."""
    (folder / f"{name}.yaml").write_text("base: Q8_0\n", encoding="utf-8")
    plan = {"plan": f"{name}.tsv", "report": f"{name}.json"}
    config = {"recipe": name, "imatrix": None, "mtp": mtp}
    run(folder, "recipe.plan", config, model=MTP, recipe=f"{name}.yaml", **plan)
    files = {"manifest": "m.tsv", "gguf": f"{name}.gguf", "facts": f"{name}.facts.json", "store": "store"}
    run(folder, "quantize.write", {"imatrix": None}, model=MTP, **plan, **files, threads=1)
    return folder / f"{name}.gguf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mtp")
    run(folder, "model.manifest", {}, model=MTP, manifest="m.tsv", facts="m.json", threads=1)
    return folder


@pytest.fixture(scope="module")
def without(folder: Path) -> Path:
    return made(folder, "without", "none")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    return made(folder, "alone", "only")


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(3).integers(3, 2048, CONTEXT, dtype=np.int32)


def logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    with evaluator(path, context=CONTEXT, batch=CONTEXT, threads=1) as model:
        model.decode(tokens, 0, 0)
        return model.logits(len(tokens)).copy()


def test_without_the_head_the_model_predicts_what_it_did(without: Path, tokens: np.ndarray) -> None:
    assert np.array_equal(logits(without, tokens), logits(MTP, tokens))


def test_its_metadata_tell_of_no_head(without: Path, folder: Path) -> None:
    header = read_header(without)
    assert (header.layers, header.has_mtp) == (2, False)
    assert "qwen35.nextn_predict_layers" not in header.kv
    assert header.value("qwen35.attention.recurrent_layers") == [True, False]
    assert not any("blk.2." in tensor.name for tensor in header.tensors)
    facts, plan = read_json(folder / "without.facts.json"), read_json(folder / "without.json")
    assert facts["bytes"] == plan["file_bytes"] == without.stat().st_size


def test_a_head_alone_predicts_beside_its_model_what_it_did_in_it(
    without: Path, alone: Path, tokens: np.ndarray
) -> None:
    options: dict[str, Any] = {"context": CONTEXT, "batch": CONTEXT, "threads": 1}
    predicted = []
    for model in (Head(MTP, **options), Beside(without, alone, **options)):
        with model:
            states = model.states(tokens, 0)
            predicted.append(model.predict(tokens[1:], states[:-1], 1)[0].copy())
    assert np.array_equal(*predicted) and np.isfinite(predicted[0]).all()


def test_a_head_alone_is_loaded_and_not_asked(alone: Path, folder: Path) -> None:
    facts = read_json(folder / "alone.facts.json")
    assert facts["bytes"] == read_json(folder / "alone.json")["file_bytes"]
    run(folder, "check.file", {}, model=alone, facts="alone.facts.json", threads=1, out="check.json")
    report = read_json(folder / "check.json")
    assert (report["tried"], report["failures"]) == ("loaded", [])


def test_the_table_of_memory_holds_for_a_file_without_the_head(without: Path) -> None:
    from quantmill.model.memory import needs

    assert needs(read_header(without), 128, "f16") == needs(read_header(MTP), 128, "f16")
