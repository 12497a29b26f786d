"""Greedy generation, several sequences side by side, each as if it were alone.

A token's logits depend on how many tokens are computed with it: kernels for one
row, for four and for eight round differently (of a small F16 model by 9e-4), and
a greedy answer can turn on the last bit. So every step computes one token of
each of a fixed number of sequences, whether it still has work or not, and every
prompt is computed by itself. What a sequence answers then depends on its prompt
and on that number, and on nothing that runs beside it: answers may be made in
any order and kept one by one.
"""

from __future__ import annotations

import ctypes as c
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.llama import native, place
from quantmill.errors import QuantmillError
from quantmill.offload import chosen

Tokens = NDArray[np.int32]

_BATCH: Final = 512
_PAD: Final = 256  # positions of a sequence come in multiples of it
_PIECE: Final = 256  # bytes of a token's text at most


@dataclass
class Answer:
    """What was generated for the prompt numbered `number`.

    `text` ends before the stop string; `ended` says whether the model or a stop
    string ended it (else the limit did); `seconds` is its share of the time that
    the steps took, `prompt_seconds` what its prompt did.
    """

    number: int
    text: str
    tokens: list[int]
    ended: bool
    seconds: float
    prompt_seconds: float


@dataclass
class _Slot:
    """A sequence of the context: the prompt that it answers (-1: none), and its text so far."""

    number: int = -1
    position: int = 0
    tokens: list[int] = field(default_factory=list)
    text_bytes: bytearray = field(default_factory=bytearray)
    seconds: float = 0.0
    prompt_seconds: float = 0.0


class Generator:
    """A model loaded to generate, `parallel` sequences of `context` positions each.

    The threads change no answer, nor does `context` where it suffices; `parallel` may.
    """

    def __init__(self, path: Path, *, context: int, parallel: int, threads: int) -> None:
        self._parallel = parallel
        self.context = -(-context // _PAD) * _PAD
        params = native.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = self.context * parallel, parallel, False
        params.n_batch = params.n_ubatch = max(_BATCH, parallel)
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self._model, self._context, self.placement = place(
            path, native.llama_model_default_params(), params, chosen()
        )
        self._memory = native.llama_get_memory(self._context)
        self._vocab = native.llama_model_get_vocab(self._model)
        self._words = native.llama_vocab_n_tokens(self._vocab)
        self._batch = native.llama_batch_init(params.n_batch, 0, 1)

    def answers(
        self, prompts: Sequence[Tokens], max_tokens: int, stops: Sequence[str] = ()
    ) -> Iterator[Answer]:
        """The answers to `prompts`, each as soon as it is done: the likeliest token at each step, until
        the model ends, a stop string appears or there are `max_tokens`.
        """
        stop_bytes = [stop.encode() for stop in stops]
        waiting = iter(enumerate(prompts))
        slots = [_Slot() for _ in range(self._parallel)]
        while True:
            for sequence, slot in enumerate(slots):
                while slot.number < 0 and (following := next(waiting, None)) is not None:
                    slots[sequence] = slot = self._prefill(sequence, *following)
                    if answer := self._done(slot, max_tokens, stop_bytes):
                        yield answer
            busy = [slot for slot in slots if slot.number >= 0]
            if not busy:
                return
            started = time.perf_counter()
            following_tokens = self._step(slots)
            share = (time.perf_counter() - started) / len(busy)
            for slot, token in zip(slots, following_tokens, strict=True):
                if slot.number >= 0:
                    slot.seconds += share
                    slot.tokens.append(token)
                    if answer := self._done(slot, max_tokens, stop_bytes):
                        yield answer

    def _prefill(self, sequence: int, number: int, prompt: Tokens) -> _Slot:
        """A slot with its prompt computed, in pieces of about one size, and its first token chosen."""
        if len(prompt) >= self.context:
            raise ValueError(f"a prompt of {len(prompt)} tokens in a context of {self.context}")
        started = time.perf_counter()
        native.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        position = 0
        for piece in np.array_split(prompt, -(-len(prompt) // _BATCH)):
            n = len(piece)
            with_logits = np.arange(position, position + n) == len(prompt) - 1
            self._decode(piece, np.arange(position, position + n), np.full(n, sequence), with_logits)
            position += n
        token = int(self._logits(1).argmax())
        return _Slot(number, position, [token], prompt_seconds=time.perf_counter() - started)

    def _step(self, slots: Sequence[_Slot]) -> list[int]:
        """One token more of each sequence; one without work computes a first token, and forgets it."""
        for sequence, slot in enumerate(slots):
            if slot.number < 0:
                native.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        tokens = np.array([slot.tokens[-1] if slot.number >= 0 else 0 for slot in slots])
        positions = np.array([slot.position if slot.number >= 0 else 0 for slot in slots])
        count = len(slots)
        self._decode(tokens, positions, np.arange(count), np.ones(count, bool))
        for slot in slots:
            slot.position += 1
        return [int(token) for token in self._logits(count).argmax(axis=1)]

    def _done(self, slot: _Slot, max_tokens: int, stops: Sequence[bytes]) -> Answer | None:
        """The slot's answer if its last token ends it; the slot is then free."""
        token = slot.tokens[-1]
        ended = bool(native.llama_vocab_is_eog(self._vocab, token))
        if ended:
            slot.tokens.pop()
        else:
            slot.text_bytes += self._piece(token)
            ends = [at for at in (slot.text_bytes.find(stop) for stop in stops) if at >= 0]
            if ends:
                ended = True
                del slot.text_bytes[min(ends) :]
        if not ended and len(slot.tokens) < max_tokens and slot.position < self.context:
            return None
        text = slot.text_bytes.decode(errors="replace")
        answer = Answer(slot.number, text, slot.tokens, ended, slot.seconds, slot.prompt_seconds)
        slot.number = -1
        return answer

    def _decode(
        self,
        tokens: NDArray[Any],
        positions: NDArray[Any],
        sequences: NDArray[Any],
        with_logits: NDArray[Any],
    ) -> None:
        n, batch = len(tokens), self._batch
        batch.n_tokens = n
        _view(batch.token, n)[:] = tokens
        _view(batch.pos, n)[:] = positions
        _view(batch.n_seq_id, n)[:] = 1
        _view(batch.logits, n)[:] = with_logits
        for i in range(n):
            batch.seq_id[i][0] = int(sequences[i])
        status = native.llama_decode(self._context, batch)
        if status != 0:
            raise QuantmillError(f"llama_decode failed with {status}")

    def _logits(self, count: int) -> NDArray[np.float32]:
        return _view(native.llama_get_logits(self._context), count * self._words).reshape(count, self._words)

    def _piece(self, token: int) -> bytes:
        """The bytes of a token; none of a control token."""
        buffer = c.create_string_buffer(_PIECE)
        size = native.llama_token_to_piece(self._vocab, token, buffer, _PIECE, 0, False)
        return bytes(buffer.raw[: max(size, 0)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        native.llama_batch_free(self._batch)
        native.llama_free(self._context)
        native.llama_model_free(self._model)


def _view(pointer: Any, count: int) -> NDArray[Any]:
    return np.ctypeslib.as_array(pointer, (count,))
