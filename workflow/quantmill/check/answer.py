"""What a file answers to a question, and whether its tokenizer gives a text back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from quantmill.engine import loader
from quantmill.errors import QuantmillError
from quantmill.formats.checks import CheckedAnswer, RoundTrip

if TYPE_CHECKING:
    from quantmill.engine.vocabulary import Vocabulary

MOST: Final = 16
"""Tokens of an answer."""

_ASCII: Final = (
    "The 3 quick brown foxes, isn't it?\nfor i in range(10):\n\tprint(i ** 2)  # {[<a_b>]} $5 & 100%"
)
_ALL: Final = f"{_ASCII}\nSchöne Grüße, déjà vu, привет мир, 你好世界, こんにちは, مرحبا 🙂"


def round_trip(vocabulary: Vocabulary) -> RoundTrip:
    """Whether texts come back from their tokens; SentencePiece sets a space before a text."""
    if vocabulary.comes_back(_ALL):
        return "lossless"
    return "lossless in ASCII" if vocabulary.comes_back(_ASCII) else "lossy"


def answer(path: Path, vocabulary: Vocabulary, prompt: str, threads: int) -> CheckedAnswer:
    """The likeliest tokens after a prompt, until the model ends or there are `MOST`.

    QuantmillError, with the engine's own words, where it does not load, fails, or gives what is not finite.
    """
    tokens = vocabulary.tokenize(prompt, parse_special=True)
    if vocabulary.adds_bos:
        bos = vocabulary.tokenize(vocabulary.special("bos"), parse_special=True)[:1]
        tokens = tokens if np.array_equal(tokens[:1], bos) else np.concatenate([bos, tokens])
    if not len(tokens):
        raise QuantmillError("its tokenizer makes no token of the question")
    ends, made = set(vocabulary.ends()), list[int]()
    size = len(tokens)
    with loader.load(path, context=size + MOST, batch=size, threads=threads) as model:
        following = tokens
        while len(made) < MOST:
            model.decode(following, size + len(made) - len(following), len(following) - 1)
            logits = model.logits(1)[0]
            if not np.isfinite(logits).all():
                raise QuantmillError(
                    f"it computes logits that are not finite, after {size + len(made)} tokens"
                )
            likeliest = int(logits.argmax())
            if likeliest in ends:
                break
            made.append(likeliest)
            following = np.array([likeliest], np.int32)
    text = vocabulary.text(np.array(made, np.int32))
    return {"prompt": size, "tokens": len(made), "text": text, "ended": len(made) < MOST}
