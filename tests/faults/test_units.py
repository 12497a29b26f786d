"""A bit flipped in a unit of what a model answers: the unit is made again, with the same result.

All other kinds are flipped in a real run (`test_runs`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantmill.engine.vocabulary import Vocabulary
from quantmill.evaluate.likelihood import Likelihoods, Request
from quantmill.evaluate.prompting import generated
from quantmill.progress import Log
from quantmill.store import Store

DATA = Path(__file__).parents[1] / "data"
LLAMA = DATA / "tiny-llama.gguf"
IDENTITY: dict[str, Any] = {"engine": "e", "model": "m"}


def tokens() -> np.ndarray:
    with Vocabulary(LLAMA) as vocabulary:
        return vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))[:64]


def answers(store: Store, log: Log) -> object:
    """Of HumanEval and of the tasks that generate."""
    made = generated(
        "evaluate.humaneval",
        LLAMA,
        [tokens()[:8], tokens()[8:20]],
        {"max_tokens": 8, "stop": [], "parallel": 1},
        identity=IDENTITY,
        threads=1,
        store=store,
        log=log,
    )
    return [(answer.text, answer.tokens) for answer in made]  # it also holds the seconds that it took


def likelihoods(store: Store, log: Log) -> object:
    """Of the tasks that compare."""
    requests = [Request(tokens()[:8], tokens()[8:12]), Request(tokens()[:8], tokens()[20:22])]
    with (
        Likelihoods(LLAMA, context=64, threads=1, identity=IDENTITY, store=store) as model,
        log.progress("x", 2, "requests") as progress,
    ):
        return list(model.of(requests, progress))


@pytest.mark.parametrize("measured", [answers, likelihoods])
@pytest.mark.parametrize("place", [3, 20, 60, -1], ids=["magic", "digest", "payload", "end"])
def test_a_flipped_bit(tmp_path: Path, measured: Callable[[Store, Log], object], place: int) -> None:
    log = Log(tmp_path / "log")
    store = Store(tmp_path / "store", log=log)
    expected = measured(store, log)
    before = {path: path.read_bytes() for path in store.units.glob("*/*")}
    assert before
    for path, content in before.items():
        data = bytearray(content)
        data[place] ^= 1
        path.write_bytes(data)
    again = Store(tmp_path / "store", log=log)
    assert measured(again, log) == expected
    assert again.made and not again.reused
    assert set(store.units.glob("*/*")) == before.keys()
    assert measured(later := Store(tmp_path / "store", log=log), log) == expected
    assert later.reused and not later.made
