"""How many tokens of a model's draft head the model itself would have written, by draft length.

The first half of each chunk is a prompt, which the model continues greedily. At each token that it writes the
head drafts further ones, from the model's last hidden state before that token, then from its own states; what
llama.cpp's server does with `--spec-type draft-mtp` (common/speculative.cpp). Checked greedily, drafts of any
length give the same text: so one text gives the steps of a server for each length. A step accepts the tokens
of a draft before the first that the model would not have written, and writes one more. The acceptance rate
is the server's: accepted tokens over drafted ones.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from quantmill import command
from quantmill.engine.evaluator import Tokens
from quantmill.engine.mtp import Head
from quantmill.errors import QuantmillError
from quantmill.formats.drafts import DRAFTS, Draft, Drafts
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.publication import model_sha256
from quantmill.formats.settings import Chunks
from quantmill.measure.saved import Saved
from quantmill.measure.score import batch_of, cut, load_chunks, units, with_bos
from quantmill.model.roles import layer_of
from quantmill.progress import Log
from quantmill.store import Identity, Store

STAGE: Final = "measure.draft"
LONGEST: Final = 4
"""The longest draft; several heads, one for each further token, draft no more than they are."""

Matches = NDArray[np.int8]
"""Of each token that a model wrote, how many tokens of a draft after it are right [n], at most `LONGEST`."""

_NONE: Final = -1  # where a text ended early

States = NDArray[np.float32]


class Drafter(Protocol):
    """What of `engine.mtp.Head` drafts."""

    batch: int
    width: int
    heads: int

    def clear(self) -> None: ...

    def states(self, tokens: Tokens, position: int, first_logits: int = 0) -> States: ...

    def logits(self, count: int) -> NDArray[np.float32]: ...

    def ends(self, token: int) -> bool: ...

    def predict(
        self, tokens: Tokens, states: States, position: int, head: int = 0
    ) -> tuple[NDArray[np.float32], States]: ...


class Steps(NamedTuple):
    """What drafts of one length come to in a text."""

    steps: int
    accepted: int


def steps(matches: Sequence[int] | Matches, length: int) -> Steps:
    """The steps of a server that drafts `length` tokens at a time, of the matches of one text."""
    at = taken = accepted = 0
    while at < len(matches):
        right = min(int(matches[at]), length)
        taken, accepted, at = taken + 1, accepted + right, at + right + 1
    return Steps(taken, accepted)


def longest(heads: int) -> int:
    """The tokens that so many heads draft at most."""
    return min(heads, LONGEST) if heads > 1 else LONGEST


def matches(model: Drafter, prompt: Tokens, count: int) -> Matches:
    """How good the drafts are after each of `count` tokens with which the model continues `prompt`, but the
    last, whose drafts go beyond them.
    """
    tokens, states = _continued(model, prompt, count)
    before = np.concatenate([np.zeros((1, model.width), np.float32), states])
    for first in range(0, len(prompt), model.batch):
        rows = slice(first, min(first + model.batch, len(prompt)))
        for head in range(model.heads):
            model.predict(tokens[rows], before[rows], first, head)
    most = longest(model.heads)
    draft = _drafted_by_one if model.heads == 1 else _drafted_in_turn
    made = [
        draft(model, tokens[at : at + 1 + most], before[at : at + 1], at)
        for at in range(len(prompt), len(tokens) - most)
    ]
    return np.array(made, np.int8)


def _continued(model: Drafter, prompt: Tokens, count: int) -> tuple[Tokens, States]:
    """`prompt` and the tokens that the model writes after it, `count` or as many as it has to say, and the
    model's states of all but the last.
    """
    model.clear()
    states = []
    for first in range(0, len(prompt), model.batch):
        part = prompt[first : first + model.batch]
        states.append(model.states(part, first, len(part) - 1))
    written: list[int] = []
    while True:
        token = _first(model.logits(1)[-1])
        if model.ends(token):
            break
        written.append(token)
        if len(written) == count:
            break
        states.append(model.states(np.array([token], np.int32), len(prompt) + len(written) - 1))
    return np.concatenate([prompt, np.array(written, np.int32)]), np.concatenate(states)


def _drafted_by_one(model: Drafter, came: Tokens, state: States, position: int) -> int:
    """How many tokens after came[0], which stands at `position`, a single head drafts as they came; `state`
    [1, width] is the model's before it. The first wrong one ends the draft: none after it is accepted.
    """
    for right, expected in enumerate(came[1:].tolist()):
        logits, state = model.predict(came[right : right + 1], state, position + right)
        if _first(logits[-1]) != expected:
            return right
    return len(came) - 1


def _drafted_in_turn(model: Drafter, came: Tokens, state: States, position: int) -> int:
    """The same of several heads, one for each further token. Each has seen the text in its own layer, and
    sees the draft anew.
    """
    chain, right = state, 0
    for head, expected in enumerate(came[1:].tolist()):
        logits, made = model.predict(came[: head + 1], chain, position, head)
        if _first(logits[-1]) != expected:
            break
        chain, right = np.concatenate([chain, made[-1:]]), right + 1
    for head in range(model.heads):
        model.predict(came[:1], state, position, head)
    return right


def _first(logits: NDArray[np.float32]) -> int:
    """The token that is ranked first."""
    token = int(logits.argmax())
    if not np.isfinite(logits[token]):
        cure = "the file is damaged, or its types are too small for it"
        raise QuantmillError("predictions that are not finite", "the model or its draft head", cure)
    return token


def measure(
    path: Path, chunks: Tokens, *, identity: Identity, threads: int, store: Store, log: Log
) -> tuple[list[Matches], float]:
    """The matches in each chunk [n, context], and the seconds taken.

    The model is loaded only if a unit is missing.
    """
    context = chunks.shape[1]
    prompt, count = context // 2, context - context // 2
    with ExitStack() as stack:

        @cache
        def loaded() -> Head:
            head = Head(path, context=context, batch=batch_of(context, whole=False), threads=threads)
            return stack.enter_context(head)

        def make(part: Tokens, _: Saved) -> bytes:
            start = time.monotonic()
            rows = np.full((len(part), count), _NONE, np.int8)
            for row, chunk in zip(rows, with_bos(part, loaded().bos), strict=True):
                made = matches(loaded(), chunk[:prompt], count)
                row[: len(made)] = made
                progress.add(1)
            return np.float64(time.monotonic() - start).tobytes() + rows.tobytes()

        progress = stack.enter_context(log.progress("draft head", len(chunks), "chunks"))
        made = [bytes(unit) for unit in units(STAGE, chunks, identity, store, progress, make)]
    seconds = sum(float(np.frombuffer(unit, np.float64, 1)[0]) for unit in made)
    rows = [
        row[row != _NONE]
        for unit, part in zip(made, cut(chunks), strict=True)
        for row in np.frombuffer(unit, np.int8, offset=8).reshape(len(part), count)
    ]
    return rows, seconds


def describe(texts: Sequence[Matches], heads: int, where: object) -> list[Draft]:
    """Drafts of each length over texts of which the matches are known. QuantmillError where all of them are
    too short to draft in.
    """
    if not any(len(text) for text in texts):
        cure = "take a corpus whose texts it continues, or longer chunks"
        raise QuantmillError("ends every text before anything could be drafted", where, cure)
    return [_of_length(texts, length) for length in range(1, longest(heads) + 1)]


def _of_length(texts: Sequence[Matches], length: int) -> Draft:
    of_text = [steps(text, length) for text in texts]
    return {
        "length": length,
        "drafted": length * sum(one.steps for one in of_text),
        "accepted": sum(one.accepted for one in of_text),
        "steps": sum(one.steps for one in of_text),
        "drafted_by_chunk": [length * one.steps for one in of_text],
        "accepted_by_chunk": [one.accepted for one in of_text],
    }


def type_of(header: Header) -> str | None:
    """The type that holds the most bytes of the head; None of a file without one."""
    sizes: Counter[str] = Counter()
    for tensor in header.tensors if header.has_mtp else ():
        if layer_of(tensor.name) >= header.evaluated:
            sizes[tensor.type] += tensor.bytes
    return sizes.most_common(1)[0][0] if sizes else None


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `measure.draft`."""
    config: Chunks = args.spec["config"]
    chunks = load_chunks(args.corpus, config)
    header, sha256 = read_header(args.model, data=False), model_sha256(args.facts)
    kind = type_of(header)
    texts: list[Matches] = []
    seconds, lengths = 0.0, []
    if kind is None:
        log.say("the file has no draft head: nothing to measure")
    else:
        identity = {"engine": args.spec["engine"], "model": sha256}
        store = command.store(args, log)
        texts, seconds = measure(
            args.model, chunks, identity=identity, threads=args.threads, store=store, log=log
        )
        lengths = describe(texts, header.layers - header.evaluated, args.model)
    report: Drafts = {
        "corpus": config["corpus"],
        "chunks": len(chunks),
        "context": config["context"],
        "type": kind,
        "written": sum(len(text) for text in texts),
        "lengths": lengths,
        "seconds": round(seconds, 3),
        "model_sha256": sha256,
    }
    DRAFTS.write(args.out, report)
    for one in lengths:
        rate = one["accepted"] / one["drafted"]
        log.say(f"length {one['length']}: {rate:.1%} accepted ({one['accepted']} of {one['drafted']} tokens)")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True, evaluates=True)
    arguments.add_argument("--model", type=Path, required=True, help="the GGUF to measure")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--corpus", type=Path, required=True, help="token chunks (parquet)")
    arguments.add_argument("--out", type=Path, required=True, help="draft.json")
    command.run(arguments, main)
