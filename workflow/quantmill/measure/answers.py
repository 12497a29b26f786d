"""How far the answers of a projector's language model diverge, with a file's vectors in the source's place.

The language model is the same both times. With the source's vectors it answers a question about each picture
or sound, greedily; of the tokens of that answer its predictions with the file's vectors are compared.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from quantmill.check.template import BrokenTemplateError, prompt_of, template_of
from quantmill.engine.conversation import Reader, Vectors
from quantmill.engine.evaluator import Tokens
from quantmill.engine.projector import Projector
from quantmill.engine.vocabulary import Vocabulary
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.formats.projected import MOST_ANSWERED as MOST
from quantmill.formats.projected import Answered
from quantmill.measure import reference
from quantmill.measure.reference import Reference, Values, compare
from quantmill.measure.statistics import distribution, mean
from quantmill.progress import Log
from quantmill.spec import file_sha256
from quantmill.stages import VERSIONS
from quantmill.store import Identity, Store

STAGE: Final = "measure.projector"
_LENGTH: Final = struct.Struct("<Q")


@dataclass(frozen=True)
class Asked:
    """A question to a language model about pictures and sounds, which the file `projector` cuts its prompts
    for. `identity` is what determines the answers, beside the medium and the question.
    """

    question: str
    language_model: Path
    projector: Path
    identity: Identity
    threads: int


class Answer(NamedTuple):
    """What the language model answers with the source's vectors: its tokens [n], the last the one that ended
    it unless it has `MOST`, and the predictions of these.
    """

    tokens: Tokens
    predictions: Reference

    def to_bytes(self) -> bytes:
        """As a unit of the store."""
        head = json.dumps(self.tokens.tolist()).encode()
        return _LENGTH.pack(len(head)) + head + reference.to_bytes([self.predictions])

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Answer:
        """Read a unit of the store."""
        start = _LENGTH.size
        end = start + _LENGTH.unpack(data[:start])[0]
        tokens = np.array(json.loads(bytes(data[start:end])), np.int32)
        return cls(tokens, reference.from_bytes(data[end:])[0])


def prompt_about(question: str, marker: str, language_model: Path) -> str:
    """A question about the medium at the `marker`, by the language model's chat template where it has one."""
    header = read_header(language_model, data=False)
    about = f"{marker}\n{question}"
    try:
        template = template_of(header)
        text = about if template is None else prompt_of(template, [{"role": "user", "content": about}])
    except BrokenTemplateError as error:
        what = f"its chat template cannot render a question: {error}"
        raise QuantmillError(what, language_model, "leave out bench.projector.question") from None
    with Vocabulary(language_model) as vocabulary:  # libmtmd sets a BOS before the text
        return text.removeprefix(vocabulary.special("bos")) if vocabulary.adds_bos else text


def measure(
    asked: Asked,
    media: list[Path],
    theirs: Iterable[Vectors],
    ours: Iterable[Vectors],
    *,
    model: str,
    store: Store,
    log: Log,
) -> Answered:
    """The divergence of the answers about each medium, with the source's vectors [n, width] of it and with
    those of the file of the digest `model`. The language model is loaded only if a unit is missing.
    """
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(asked.threads))

        @cache
        def projector() -> Projector:
            header = read_header(asked.projector, data=False)
            return stack.enter_context(
                Projector(asked.projector, header, asked.threads, asked.language_model)
            )

        @cache
        def prompt() -> str:
            return prompt_about(asked.question, projector().marker.decode(), asked.language_model)

        @cache
        def reader() -> Reader:
            return stack.enter_context(Reader(asked.language_model, projector(), asked.threads))

        def answered(medium: Path, vectors: Vectors) -> bytes:
            tokens = reader().answer(medium, prompt(), vectors, MOST)
            logits = reader().predictions(medium, prompt(), vectors, tokens)
            _check_finite(logits, asked.language_model)
            return Answer(tokens, reference.keep(logits, tokens, pool)).to_bytes()

        def compared(medium: Path, vectors: Vectors, answer: Answer) -> bytes:
            logits = reader().predictions(medium, prompt(), vectors, answer.tokens)
            _check_finite(logits, asked.language_model)
            return compare(logits, answer.tokens, answer.predictions, pool).to_bytes(0.0)

        answers, values = list[Answer](), list[Values]()
        progress = stack.enter_context(log.progress("answers", len(media), "pictures and sounds"))
        for medium, source_vectors, vectors in zip(media, theirs, ours, strict=True):
            about = {"medium": file_sha256(medium), "question": asked.question, **asked.identity}
            key = Store.key(STAGE, VERSIONS[STAGE], answer=MOST, **about)
            make = partial(answered, medium, source_vectors)
            answers.append(Answer.from_bytes(store.get_or_make(key, make, leased=True)))
            key = Store.key(STAGE, VERSIONS[STAGE], answer=MOST, beside=model, **about)
            make = partial(compared, medium, vectors, answers[-1])
            values.append(Values.from_bytes(store.get_or_make(key, make, leased=True))[0])
            progress.add(1)
    every = Values.joined(values)
    kld = np.maximum(every.kld, 0)  # of two that are nearly the same, rounding alone may be below
    return {
        "question": asked.question,
        "language_model": asked.language_model.name,
        "answers": [
            {"file": medium.name, "tokens": len(answer.tokens), "text": text}
            for medium, answer, text in zip(media, answers, _texts(asked, answers), strict=True)
        ],
        "kld": distribution(kld),
        "same_top": mean(every.same_top.astype(np.float64)),
        "by_token": kld.tolist(),
    }


def _texts(asked: Asked, answers: list[Answer]) -> list[str]:
    """The answers as text, without the token that ended one."""
    with Vocabulary(asked.language_model) as vocabulary:
        ends = set(vocabulary.ends())
        return [
            vocabulary.text(answer.tokens[: -1 if int(answer.tokens[-1]) in ends else None])
            for answer in answers
        ]


def _check_finite(logits: reference.Floats, path: Path) -> None:
    if not np.isfinite(logits).all():
        cure = "the projector is not its own, or one of both is damaged"
        raise QuantmillError("gives predictions that are not finite after a picture or a sound", path, cure)
