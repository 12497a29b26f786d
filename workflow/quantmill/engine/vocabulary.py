"""A model's vocabulary in llama.cpp: text to tokens, without the model's weights."""

from __future__ import annotations

import ctypes as c
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from quantmill.engine.evaluator import Tokens
from quantmill.engine.llama import load, native
from quantmill.errors import QuantmillError

# llama.cpp splits text into words by std::regex, which recurses for each character of a word: 323 bytes of
# stack were measured on x86-64 with g++ 12, for each of the 25 pre-tokenizers that have no splitter of their
# own. A thread's usual 8 MiB overflow at 26,000 characters.
_STACK: Final = 256 << 20
LONGEST_STRETCH: Final = 400_000
"""The most characters that may stand together as what some pre-tokenizer takes for one word: half of what
was measured to fill the stack."""
_SHORT: Final = 4096  # characters that any thread's stack suffices for
# What may be one word: no space in it; spaces alone; or letters and spaces (as exaone-moe has it).
_STRETCHES: Final = tuple(map(re.compile, (r"\S+", r"\s+", r"[^\n0-9!-/:-@\[-`{-~]+")))


class Vocabulary:
    """A model's vocabulary alone, without its weights."""

    def __init__(self, path: Path) -> None:
        params = native.llama_model_default_params()
        params.vocab_only = True
        self._model = load(path, params)
        self._vocab = native.llama_model_get_vocab(self._model)
        self.size: int = native.llama_vocab_n_tokens(self._vocab)
        self.adds_bos: bool = native.llama_vocab_get_add_bos(self._vocab)

    def tokenize(self, text: str, parse_special: bool = False) -> Tokens:
        """The tokens of `text`, without a BOS; `parse_special` reads `<|...|>` as control tokens.

        QuantmillError for a text that `tokenizable` would cut.
        """
        if len(text) <= _SHORT:
            return self._tokenize(text, parse_special)
        if tokenizable(text) < len(text):
            raise QuantmillError(
                f"a text of over {LONGEST_STRETCH:,} characters without a break cannot be tokenized"
            )
        return _on_deep_stack(lambda: self._tokenize(text, parse_special))

    def around(self) -> tuple[Tokens, Tokens]:
        """The tokens that the vocabulary puts before a text and after it, such as `[CLS]` and `[SEP]`."""
        bare, whole = self._tokenize("a", False), self._tokenize("a", False, add_special=True)
        before = next(n for n in range(len(whole)) if np.array_equal(whole[n : n + len(bare)], bare))
        return whole[:before], whole[before + len(bare) :]

    def around_pair(self, template: str) -> tuple[Tokens, Tokens, Tokens]:
        """The tokens before, between and after a query and a document, as llama-server gives them to a
        reranker: by its template with `{query}` and `{document}`, or where it has none by the vocabulary.
        """
        if template:
            before, _, rest = template.partition("{query}")
            between, _, after = rest.partition("{document}")
            first, second, third = (
                self._tokenize(part, parse_special=True) for part in (before, between, after)
            )
            return first, second, third
        vocab = self._vocab
        bos, eos, sep = (getattr(native, f"llama_vocab_{name}")(vocab) for name in ("bos", "eos", "sep"))
        end = [eos if eos >= 0 else sep] if native.llama_vocab_get_add_eos(vocab) else []
        begin = [bos] if self.adds_bos else []
        middle = [*end, sep] if native.llama_vocab_get_add_sep(vocab) else end
        return np.array(begin, np.int32), np.array(middle, np.int32), np.array(end, np.int32)

    def _tokenize(self, text: str, parse_special: bool, add_special: bool = False) -> Tokens:
        data = text.encode()
        room = len(data) + 16
        out = np.empty(room, np.int32)
        pointer = out.ctypes.data_as(c.POINTER(c.c_int32))
        count = native.llama_tokenize(self._vocab, data, len(data), pointer, room, add_special, parse_special)
        if count < 0:
            raise QuantmillError(f"a text of {len(data)} bytes gave over {room} tokens")
        return out[:count].copy()

    def text(self, tokens: Tokens) -> str:
        """The text of tokens, of control tokens too."""
        numbers = np.ascontiguousarray(tokens, np.int32)
        pointer = numbers.ctypes.data_as(c.POINTER(c.c_int32))
        room = 16 * len(numbers) + 64
        while True:
            buffer = c.create_string_buffer(room)
            size = native.llama_detokenize(self._vocab, pointer, len(numbers), buffer, room, False, True)
            if size >= 0:
                return buffer.raw[:size].decode(errors="replace")
            room = -size

    def comes_back(self, text: str) -> bool:
        """Whether a text is the same after tokenizing; a space that some set before it counts for nothing."""
        return self.text(self.tokenize(text)).removeprefix(" ") == text

    def token_text(self, token: int) -> str:
        """The text under which the vocabulary lists a token, such as `<s>`."""
        return (native.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace")

    def ends(self) -> list[int]:
        """The tokens that end a text or a turn."""
        return [token for token in range(self.size) if native.llama_vocab_is_eog(self._vocab, token)]

    def special(self, which: str) -> str:
        """The text of the `bos` or `eos` token; empty where there is none."""
        token = getattr(native, f"llama_vocab_{which}")(self._vocab)
        return self.token_text(token) if token >= 0 else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        native.llama_model_free(self._model)


def tokenizable(text: str) -> int:
    """How many characters of `text` from its start can be tokenized: all, but of an endless word."""
    if len(text) <= LONGEST_STRETCH:
        return len(text)
    ends = [len(text)]
    for kind in _STRETCHES:
        long = (match for match in kind.finditer(text) if len(match[0]) > LONGEST_STRETCH)
        ends += [match.start() + LONGEST_STRETCH for match in islice(long, 1)]
    return min(ends)


def _on_deep_stack(call: Callable[[], Tokens]) -> Tokens:
    usual = threading.stack_size(_STACK)
    try:
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(call).result()
    except RuntimeError as error:
        cure = "raise the limit of memory (ulimit -v)"
        raise QuantmillError(f"no thread with a stack of {_STACK >> 20} MiB ({error})", cure=cure) from None
    finally:
        threading.stack_size(usual)
