"""Whether texts come back from their tokens."""

from __future__ import annotations

from typing import Any

import pytest

from quantmill.check.answer import round_trip


class Losing:
    """A vocabulary without these letters."""

    def __init__(self, letters: str) -> None:
        self._letters = letters

    def comes_back(self, text: str) -> bool:
        return not set(text) & set(self._letters)


@pytest.mark.parametrize(
    ("letters", "result"), [("", "lossless"), ("ü", "lossless in ASCII"), ("üb", "lossy")]
)
def test_what_a_tokenizer_loses(letters: str, result: str) -> None:
    vocabulary: Any = Losing(letters)
    assert round_trip(vocabulary) == result
