"""Prompts, by the model's own chat template or as a text to continue, and the answers in the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np

from quantmill.corpus.chat import ChatTemplate
from quantmill.corpus.messages import BrokenRowError
from quantmill.engine.generate import Answer, Generator, Tokens
from quantmill.engine.vocabulary import Vocabulary
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.measure.placed import note
from quantmill.progress import Log
from quantmill.spec import canonical
from quantmill.stages import VERSIONS
from quantmill.store import Identity, Store

Variables = Mapping[str, Any]
"""Values of a chat template's variables by name."""
_CURE: Final = "set prompt: completion for it under bench"


def trained_context(path: Path) -> int | None:
    """The positions that a model was trained for, where its header says so."""
    header = read_header(path, data=False)
    value = header.value(f"{header.architecture}.context_length")
    return value if isinstance(value, int) and value > 0 else None


class Prompter:
    """The way to ask a model: by chat, where it has a template, or by completion.

    `variables` go to the template (`enable_thinking: false`, say). QuantmillError
    where there is to be a chat and the model has no template, or a broken one.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary, *, chat: bool, variables: Variables) -> None:
        self._path, self._vocabulary, self._variables = path, vocabulary, variables
        bos = vocabulary.special("bos")
        self._bos = vocabulary.tokenize(bos, parse_special=True)[:1] if vocabulary.adds_bos and bos else None
        self._template = None
        if not chat:
            return
        text = read_header(path, data=False).text("tokenizer.chat_template")
        if text is None:
            raise QuantmillError("has no chat template", path, _CURE)
        try:
            self._template = ChatTemplate(text, bos=bos, eos=vocabulary.special("eos"))
        except ValueError as error:
            raise QuantmillError(f"its chat template is broken ({error})", path, _CURE) from None

    def tokens(self, text: str) -> Tokens:
        """The tokens of one question, a BOS before them where the vocabulary wants one."""
        if self._template is None:
            return self.with_bos(self._vocabulary.tokenize(text))
        prompt = self.render([{"role": "user", "content": text}])
        return self.with_bos(self._vocabulary.tokenize(prompt, parse_special=True))

    def render(self, messages: list[dict[str, str]], *, answer: bool = True) -> str:
        """A conversation as the template has it, up to where the answer begins."""
        assert self._template is not None
        try:
            return self._template.render(messages, answer=answer, **self._variables)
        except BrokenRowError as error:
            raise QuantmillError(f"a question is {error}", self._path, _CURE) from None

    def with_bos(self, tokens: Tokens) -> Tokens:
        """The tokens with a BOS before them, where the vocabulary wants one and they have none."""
        if self._bos is None or (len(tokens) and tokens[0] == self._bos[0]):
            return tokens
        return np.concatenate([self._bos, tokens])


class Generation(TypedDict):
    """The settings of an answer; part of the key of its unit in the store."""

    max_tokens: int
    stop: list[str]
    parallel: int


def generated(
    stage: str,
    path: Path,
    prompts: Sequence[Tokens],
    settings: Generation,
    *,
    identity: Identity,
    threads: int,
    store: Store,
    log: Log,
) -> list[Answer]:
    """The answers to `prompts`, in order, from the store or generated.

    `identity` is what, beside the settings and the prompt, determines an answer
    (the engine's digest and the model's sha256). The model is loaded only if an answer is missing.
    """

    def key(prompt: Tokens) -> str:
        tokens = hashlib.sha256(prompt.astype("<i4").tobytes()).hexdigest()
        return Store.key(stage, VERSIONS[stage], prompt=tokens, **settings, **identity)

    keys = [key(prompt) for prompt in prompts]
    # Whoever asks the same meanwhile waits for these answers.
    lease = Store.key("answers", 1, of=keys)
    with (
        store.leases.holding(lease, lambda: all(map(store.has, keys)) or None),
        log.progress("answers", len(prompts), "problems") as progress,
    ):
        answers: dict[int, Answer] = {}
        for number, stored in enumerate(map(store.get, keys)):
            if stored is not None:
                answers[number] = Answer(number, **json.loads(bytes(stored)))
        missing = [number for number in range(len(prompts)) if number not in answers]
        store.reused += len(answers)
        progress.reuse(len(answers))
        if missing:
            context = max(len(prompts[number]) for number in missing) + settings["max_tokens"]
            with Generator(
                path, context=context, parallel=settings["parallel"], threads=threads
            ) as generator:
                note(store, stage, identity, generator.placement)
                unanswered = [prompts[number] for number in missing]
                for answer in generator.answers(unanswered, settings["max_tokens"], settings["stop"]):
                    answer.number = missing[answer.number]
                    answers[answer.number] = answer
                    unit = {name: value for name, value in asdict(answer).items() if name != "number"}
                    store.put(keys[answer.number], canonical(unit).encode())
                    store.made += 1
                    progress.add(1)
    return [answers[number] for number in range(len(prompts))]
