"""What enters the MLP weights of a trained model: as modelopt sees it in torch, whole or resumed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantmill.checkpoint import calibrate
from quantmill.checkpoint.modules import inputs_of
from quantmill.engine.evaluator import Tokens
from quantmill.errors import QuantmillError
from quantmill.progress import Log
from quantmill.stages import VERSIONS
from quantmill.store import Store

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "modelopt-inputs.json").read_text("utf-8"))
TOKENS = np.array(GOLDEN["tokens"], np.int32)
MODELS = {"tiny-llama": "tiny-llama.gguf", "tiny-hybrid-moe": "tiny-moe.gguf"}


def measured(name: str, folder: Path, tokens: Tokens = TOKENS) -> tuple[dict[str, float], Store]:
    """The largest inputs, and the store that has them."""
    store = Store(folder / "store")
    result = calibrate.measure(
        DATA / MODELS[name], tokens, identity={"model": name}, threads=1, store=store, log=Log(folder / "log")
    )
    return result, store


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_modelopt_sees(name: str, tmp_path: Path) -> None:
    """modelopt computes in bf16, of which the last bit is 0.4 %; its experts share their largest."""
    result, _ = measured(name, tmp_path)
    parts: Any = [[SimpleNamespace(module=module) for module in GOLDEN[name]]]
    inputs = inputs_of(parts, result)
    for module, scale in GOLDEN[name].items():
        assert inputs[module] / 2688 == pytest.approx(scale, rel=0.004), module
    assert VERSIONS["checkpoint.calibrate"] == 1


def test_chunks_are_units_and_the_order_of_nothing_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, store = measured("tiny-llama", tmp_path)
    assert (store.made, store.reused) == (1, 0)
    monkeypatch.setattr("quantmill.measure.score.CHUNKS_A_UNIT", 2)
    parts, store = measured("tiny-llama", tmp_path)
    assert (store.made, store.reused) == (3, 0)
    again, store = measured("tiny-llama", tmp_path)
    assert (store.made, store.reused) == (0, 3)
    assert whole == parts == again
    backwards, _ = measured("tiny-llama", tmp_path, TOKENS[::-1])
    assert backwards == whole
    first, _ = measured("tiny-llama", tmp_path, TOKENS[:1])
    assert all(first[name] <= whole[name] for name in whole) and first != whole


def test_what_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate.MatMul, "input", lambda node: np.array([1.0, np.nan], np.float32))
    with pytest.raises(QuantmillError, match=r"non-finite activations in blk\.0\.ffn_gate\.weight"):
        measured("tiny-llama", tmp_path)
