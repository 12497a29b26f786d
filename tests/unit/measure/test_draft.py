"""What a model accepts of its draft head: the arithmetic by hand, right heads and wrong ones, the stage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import heads
from quantmill import spec
from quantmill.engine.mtp import Head
from quantmill.errors import QuantmillError
from quantmill.files import write_json, writing
from quantmill.formats.chunks import Chunk, write_chunks
from quantmill.formats.ggufio import read_header
from quantmill.measure import draft
from quantmill.measure.draft import Steps, describe, longest, matches, steps, type_of
from quantmill.progress import Log
from quantmill.store import Store

DATA = Path(__file__).parents[2] / "data"
WORDS, END = 50, 49


class Counting:
    """A model that counts on: after `t` comes t + 1, the state is the token before. Its heads are right
    where `right(position of the drafted token, how manieth of its draft)` says so. 49 ends its texts.
    """

    batch, width = 4, 1

    def __init__(self, right: object, heads: int = 1, offset: int = 0) -> None:
        self.right, self.heads, self.offset = right, heads, offset
        self.seen: dict[int, dict[int, float]] = {head: {} for head in range(heads)}
        self.last = 0

    def clear(self) -> None:
        self.seen = {head: {} for head in range(self.heads)}

    def states(self, tokens: np.ndarray, position: int, first_logits: int = 0) -> np.ndarray:
        self.last = int(tokens[-1])
        return tokens.astype(np.float32)[:, None]

    def logits(self, count: int) -> np.ndarray:
        return self._one(self.last + 1)

    def ends(self, token: int) -> bool:
        return token == END

    def predict(
        self, tokens: np.ndarray, states: np.ndarray, position: int, head: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        seen = self.seen[head]
        for place in [place for place in seen if place >= position]:
            del seen[place]
        seen.update({position + row: float(state) for row, state in enumerate(states[:, 0])})
        assert sorted(seen) == list(range(position + len(tokens))), "a position that the head never saw"
        at = position + len(tokens)
        nth = 1 - min(0, int(states[-1, 0]))  # a head's own states count its draft, below zero
        if nth == 1 and at > 1:
            assert states[-1, 0] == tokens[-1] - 1, "not the state before the token"
        is_right = self.right(at, nth)  # type: ignore[operator]
        drafted = int(tokens[-1]) + (1 if is_right else 2)
        return self._one(drafted), np.full((len(tokens), 1), -nth, np.float32)

    def _one(self, token: int) -> np.ndarray:
        row = np.zeros((1, WORDS), np.float32)
        row[0, token % WORDS] = 1
        return row


def prompt(first: int = 1, length: int = 6) -> np.ndarray:
    return np.arange(first, first + length, dtype=np.int32)


@pytest.mark.parametrize(
    ("of_text", "length", "expected"),
    [
        ([0, 0, 0], 1, Steps(3, 0)),
        ([1, 4, 0], 1, Steps(2, 1)),  # the accepted token is not drafted after
        ([4, 0, 0, 0, 0, 2], 4, Steps(2, 6)),
        ([4, 0, 0, 0, 0, 2], 2, Steps(4, 4)),  # two and one more; none; none; two
        ([3, 0, 0, 0, 4], 4, Steps(2, 7)),
        ([], 4, Steps(0, 0)),
    ],
)
def test_a_step_accepts_what_is_right_and_writes_one_more(
    of_text: list[int], length: int, expected: Steps
) -> None:
    assert steps(of_text, length) == expected


def test_the_rate_is_accepted_tokens_over_drafted_ones() -> None:
    one, two = np.array([4, 0, 0, 0, 0], np.int8), np.array([1, 0, 0], np.int8)
    single, *_, four = describe([one, two], 1, "m")
    assert (single["length"], single["drafted"], single["accepted"], single["steps"]) == (1, 6, 2, 6)
    assert (four["drafted"], four["accepted"], four["steps"]) == (12, 5, 3)
    assert (four["drafted_by_chunk"], four["accepted_by_chunk"]) == ([4, 8], [4, 1])


@pytest.mark.parametrize("heads_of_model", [1, 3])
def test_a_head_that_is_right_is_accepted_whole(heads_of_model: int) -> None:
    model = Counting(lambda at, nth: True, heads_of_model)
    most = longest(heads_of_model)
    assert matches(model, prompt(), 12).tolist() == [most] * (12 - most)


def test_the_first_wrong_token_ends_a_draft() -> None:
    def only_two(_: int, nth: int) -> bool:
        return nth <= 2

    assert matches(Counting(only_two), prompt(), 10).tolist() == [2] * 6
    # the token at 9 is never drafted rightly: of those before it fewer are
    unlucky = Counting(lambda at, nth: at != 9)
    assert matches(unlucky, prompt(), 10).tolist() == [2, 1, 0, 4, 4, 4]


def test_several_heads_draft_in_turn() -> None:
    def of_second(_: int, nth: int) -> bool:
        return nth != 2

    assert matches(Counting(of_second, heads=3), prompt(), 9).tolist() == [1] * 6
    assert [longest(heads) for heads in (1, 2, 3, 7)] == [4, 2, 3, 4]
    assert [one["length"] for one in describe([np.array([1], np.int8)], 2, "m")] == [1, 2]


def test_a_text_that_ends_is_drafted_in_up_to_its_end() -> None:
    always = Counting(lambda at, nth: True)
    assert len(matches(always, prompt(first=38), 40)) == 1  # 44 ... 48, of which the last four end drafts
    none = matches(always, prompt(first=43), 40)
    assert none.tolist() == []
    line = (
        "^m: ends every text before anything could be drafted; take a corpus whose texts it continues, or "
        "longer chunks$"
    )
    with pytest.raises(QuantmillError, match=line):
        describe([none, none], 1, "m")


def test_a_head_that_is_not_finite_is_refused() -> None:
    class Damaged(Counting):
        def _one(self, token: int) -> np.ndarray:
            return np.full((1, WORDS), np.nan, np.float32)

    line = "^the model or its draft head: predictions that are not finite; the file is damaged, or its types"
    with pytest.raises(QuantmillError, match=line):
        matches(Damaged(lambda at, nth: True), prompt(), 10)


def test_the_small_models_head_is_wrong_and_one_that_knows_the_next_token_is_right(tmp_path: Path) -> None:
    right = heads.write_right(tmp_path / "right.gguf")
    random = np.random.default_rng(2)
    made = {}
    for path in (right, heads.UNTRAINED):
        with Head(path, context=40, batch=16, threads=1) as model:
            texts = [matches(model, random.integers(3, 2048, 20, np.int32), 20) for _ in range(4)]
        made[path] = describe(texts, 1, path)
    assert all(one["accepted"] == one["drafted"] > 0 for one in made[right])
    assert all(one["accepted"] < 0.2 * one["drafted"] for one in made[heads.UNTRAINED])
    assert type_of(read_header(right)) == "q8_0"


def stage(folder: Path, model: Path, chunks: int = 10) -> tuple[dict[str, object], str]:
    """What the stage reports, and what it says."""
    rows = np.random.default_rng(5).integers(3, 2048, (chunks, 32), dtype=np.int32)
    with writing(folder / "c.parquet") as file:
        write_chunks(file, [Chunk("noise", row, []) for row in rows])
    write_json(folder / "facts.json", {"sha256": model.stem})
    config = {"corpus": "c", "chunks": chunks, "context": 32}
    made = spec.make("measure.draft", config, {"model": "m"}, engine="e")
    options = {"spec": made, "model": model, "facts": folder / "facts.json", "corpus": folder / "c.parquet"}
    options |= {"store": folder / "s", "out": folder / "draft.json", "threads": 1}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "quantmill.measure.draft", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads((folder / "draft.json").read_text("utf-8")), done.stderr


def test_the_stage(tmp_path: Path) -> None:
    report, said = stage(tmp_path, heads.UNTRAINED)
    assert report["type"] == "q8_0" and report["model_sha256"] == "tiny-mtp-Q8_0"
    lengths = report["lengths"]
    assert [one["length"] for one in lengths] == [1, 2, 3, 4]
    assert len(lengths[0]["drafted_by_chunk"]) == 10
    assert "length 4: " in said
    assert stage(tmp_path, heads.UNTRAINED)[0] == report  # the seconds too: nothing was made


def test_a_file_without_a_head_has_nothing_to_measure(tmp_path: Path) -> None:
    report, said = stage(tmp_path, DATA / "tiny-llama.gguf")
    assert (report["type"], report["lengths"], report["written"]) == (None, [], 0)
    assert "the file has no draft head: nothing to measure" in said


def test_units_are_found_again(tmp_path: Path) -> None:
    chunks = np.random.default_rng(1).integers(3, 2048, (9, 32), dtype=np.int32)
    texts = []
    for made in (2, 0):
        store = Store(tmp_path / "s")
        found, _ = draft.measure(
            heads.UNTRAINED, chunks, identity={"model": "m"}, threads=1, store=store, log=Log()
        )
        assert store.made == made
        texts.append([text.tolist() for text in found])
    assert texts[0] == texts[1]
