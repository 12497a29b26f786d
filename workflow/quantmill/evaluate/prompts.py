"""What a model is asked, as tokens: through its own chat template, or the bare text to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from quantmill.corpus.chat import ChatTemplate
from quantmill.corpus.decode import BrokenRowError
from quantmill.engine.mainline import Tokens, Vocabulary
from quantmill.errors import QuantmillError
from quantmill.model.ggufio import read_header

_CURE: Final = "set prompt: completion for it under bench"


class Asker:
    """The way to ask a model: by chat, where it has a template, or by completion.

    `variables` go to the template (`enable_thinking: false`, say). QuantmillError
    where there is to be a chat and the model has no template, or a broken one.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary, *, chat: bool, variables: dict[str, Any]) -> None:
        self._path, self._vocabulary, self._variables = path, vocabulary, variables
        bos = vocabulary.special("bos")
        self._bos = vocabulary.tokenize(bos, parse_special=True)[:1] if vocabulary.adds_bos and bos else None
        self._template = None
        if not chat:
            return
        text = read_header(path, data=False).value("tokenizer.chat_template")
        if text is None:
            raise QuantmillError("has no chat template", path, _CURE)
        try:
            self._template = ChatTemplate(text, bos=bos, eos=vocabulary.special("eos"))
        except ValueError as error:
            raise QuantmillError(f"its chat template is broken ({error})", path,
                                 _CURE) from None  # fmt: skip

    def tokens(self, text: str) -> Tokens:
        """The tokens of one question, a BOS before them where the vocabulary wants one."""
        if self._template is None:
            return self.with_bos(self._vocabulary.tokenize(text))
        asked = self.render([{"role": "user", "content": text}])
        return self.with_bos(self._vocabulary.tokenize(asked, parse_special=True))

    def render(self, messages: list[dict[str, str]], *, answer: bool = True) -> str:
        """A conversation as the template has it, up to where the answer begins."""
        assert self._template is not None
        try:
            return self._template.render(messages, answer=answer, **self._variables)
        except BrokenRowError as error:
            raise QuantmillError(str(error), self._path, _CURE) from None

    def with_bos(self, tokens: Tokens) -> Tokens:
        """The tokens with a BOS before them, where the vocabulary wants one and they have none."""
        if self._bos is None or (len(tokens) and tokens[0] == self._bos[0]):
            return tokens
        return np.concatenate([self._bos, tokens])
