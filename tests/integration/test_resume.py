"""Evaluations that end within a unit: the next run goes on there. Progress within a chunk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantmill.engine.mainline import Evaluator
from quantmill.engine.vocabulary import Vocabulary
from quantmill.measure import divergence, imatrix, perplexity, saved, score
from quantmill.measure.divergence import Model
from quantmill.progress import Log, Progress
from quantmill.store import Store

DATA = Path(__file__).parents[1] / "data"
CONTEXT, CHUNKS = 128, 8
IDENTITY: dict[str, Any] = {"engine": "e", "model": "m"}
Measured = Callable[[Store], list[np.ndarray]]


class StoppedError(Exception):
    """What ends a run here."""


def chunks() -> np.ndarray:
    with Vocabulary(DATA / "tiny-moe.gguf") as vocabulary:
        tokens = vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))
    return tokens[: CHUNKS * CONTEXT].reshape(CHUNKS, CONTEXT)


def of_imatrix(store: Store) -> list[np.ndarray]:
    shard = imatrix.measure(
        DATA / "tiny-moe.gguf", chunks(), identity=IDENTITY, threads=1, store=store, log=Log(Path("log"))
    )
    sums = [array for entry in shard.sums.values() for array in (entry.in_sum2, entry.counts)]
    return [*sums, shard.nll]


def of_perplexity(store: Store) -> list[np.ndarray]:
    nll, _ = perplexity.measure(
        DATA / "tiny-moe.gguf", chunks(), identity=IDENTITY, threads=1, store=store, log=Log(Path("log"))
    )
    return [nll]


def of_divergence(store: Store) -> list[np.ndarray]:
    """Of a model from another: first the predictions of that, then the divergence, each ended once."""
    model, source = (
        Model(DATA / "tiny-moe.gguf", IDENTITY),
        Model(DATA / "tiny-moe.gguf", {**IDENTITY, "model": "o"}),
    )
    values, _ = divergence.measure(model, source, chunks(), threads=1, store=store, log=Log(Path("log")))
    return [values.kld, values.nll, values.nll_reference, values.mass, values.whole]


@pytest.mark.parametrize("measured", [of_imatrix, of_perplexity, of_divergence])
def test_a_unit_that_was_begun_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Measured
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = measured(Store(tmp_path / "whole"))
    monkeypatch.setattr(saved, "SAVE_EVERY", 0.0)
    decode, decoded, left = Evaluator.decode, [0], [0]

    def counting(model: Evaluator, tokens: np.ndarray, *more: Any, **named: Any) -> None:
        decoded[0] += tokens.size
        left[0] -= 1
        if left[0] == 0:
            raise StoppedError
        decode(model, tokens, *more, **named)

    monkeypatch.setattr(Evaluator, "decode", counting)
    for _ in range(2):
        left[0] = 4
        with pytest.raises(StoppedError):
            measured(Store(tmp_path / "ended"))
    before = decoded[0]
    result = measured(Store(tmp_path / "ended"))
    passes = 2 if measured is of_divergence else 1
    needed = passes * CHUNKS * CONTEXT
    assert needed <= decoded[0] <= needed + 4 * CONTEXT  # what was begun when it ended, and no more
    assert decoded[0] - before < needed
    assert [a.tobytes() for a in result] == [a.tobytes() for a in expected]


def test_progress_moves_within_a_chunk(tmp_path: Path) -> None:
    class Counting(Progress):
        def __init__(self) -> None:
            self.parts: list[float] = []

        def add(self, amount: float) -> None:
            self.parts.append(amount)

    progress = Counting()
    with Evaluator(DATA / "tiny-llama.gguf", context=CONTEXT, batch=CONTEXT, threads=1) as model:
        for group in score.groups(chunks()[:2] % model.vocab_size, model):
            list(score.predictions(model, group, progress))
    assert sum(progress.parts) == 2
    assert len(progress.parts) >= 8
    assert max(progress.parts) <= 0.75
