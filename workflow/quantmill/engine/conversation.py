"""A language model that reads pictures and sounds: a prompt with a projector's vectors in it, the answer."""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.evaluator import Tokens, fill, logits_at
from quantmill.engine.llama import listener, load, native
from quantmill.engine.projector import Projector, bindings
from quantmill.errors import QuantmillError

_BATCH: Final = 512

Vectors = NDArray[np.float32]
Logits = NDArray[np.float32]


class Reader:
    """A language model on the CPU, beside one of its projectors.

    The projector cuts prompts and says how the model attends to its vectors. These are given to each call, so
    they may be those of another file of the same projector.
    """

    def __init__(self, path: Path, projector: Projector, threads: int) -> None:
        self._path, self._projector, self._threads = path, projector, threads
        self._nowhere = (c.c_void_p * 1)()  # a list of devices that ends with its first entry
        params = native.llama_model_default_params()
        params.devices = c.addressof(self._nowhere)
        self._model = load(path, params)
        self._vocab = native.llama_model_get_vocab(self._model)
        self._words = native.llama_vocab_n_tokens(self._vocab)

    def answer(self, medium: Path, prompt: str, vectors: Vectors, most: int) -> Tokens:
        """The likeliest tokens [n] after a prompt with the medium's `vectors` [m, width] at its marker, until
        one that ends the answer, which is the last, or until there are `most`.
        """
        answer: list[int] = []
        with self._read(medium, prompt, vectors, most) as (context, position):
            while True:
                logits = logits_at(native.llama_get_logits_ith(context, -1), 1, self._words)
                answer.append(int(logits.argmax()))
                if len(answer) == most or native.llama_vocab_is_eog(self._vocab, answer[-1]):
                    return np.array(answer, np.int32)
                self._decode(context, np.array(answer[-1:], np.int32), position + len(answer) - 1)

    def predictions(self, medium: Path, prompt: str, vectors: Vectors, answer: Tokens) -> Logits:
        """The logits [n, vocabulary] that the tokens of an answer [n] come from, all computed at once."""
        with self._read(medium, prompt, vectors, len(answer)) as (context, position):
            logits = [logits_at(native.llama_get_logits_ith(context, -1), 1, self._words).copy()]
            if len(answer) > 1:
                self._decode(context, answer[:-1], position)
                logits.append(
                    logits_at(native.llama_get_logits(context), len(answer) - 1, self._words).copy()
                )
        return np.concatenate(logits)

    @contextmanager
    def _read(self, medium: Path, prompt: str, vectors: Vectors, more: int) -> Iterator[tuple[Any, int]]:
        """A context that has read the prompt, with the last logits stored, and the position after it."""
        projector, mtmd = self._projector, bindings()
        whole = prompt.encode()
        with projector.parts(medium, whole) as parts:
            sizes = [projector.size(part) for part in parts]
            # A picture that is attended to as a whole must be computed at once.
            batch = max(_BATCH, more, *(sizes or [0]))
            context = self._context(sum(sizes) + more, batch)
            try:
                position, at = c.c_int32(0), 0
                for number, (part, size) in enumerate(zip(parts, sizes, strict=True)):
                    place = (projector.handle, context, part)
                    if projector.is_text(part):
                        last = number == len(parts) - 1
                        status = mtmd.mtmd_helper_eval_chunk_single(
                            *place, position, 0, batch, last, c.byref(position)
                        )
                    else:
                        own = np.ascontiguousarray(vectors[at : at + size])
                        at += size
                        pointer = own.ctypes.data_as(c.POINTER(c.c_float))
                        nothing = mtmd.mtmd_helper_post_decode_callback()
                        status = mtmd.mtmd_helper_decode_image_chunk(
                            *place, pointer, position, 0, batch, c.byref(position), nothing, None
                        )
                    if status != 0:
                        what = f"cannot read a prompt with {medium.name} ({listener.last_words()})"
                        raise QuantmillError(what, self._path, "check that the projector is this model's")
                yield context, position.value
            finally:
                native.llama_free(context)

    def _context(self, size: int, batch: int) -> Any:
        params = native.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = size, batch, batch
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf = True
        context = native.llama_init_from_model(self._model, params)
        if not context:
            what = f"no context of {size} tokens ({listener.last_words()})"
            raise QuantmillError(what, self._path, "free some memory, or give a smaller picture")
        return context

    def _decode(self, context: Any, tokens: Tokens, position: int) -> None:
        """Compute tokens [n], with the logits after each."""
        batch = native.llama_batch_init(len(tokens), 0, 1)
        fill(batch, tokens, position, 0)
        status = native.llama_decode(context, batch)
        native.llama_batch_free(batch)
        if status != 0:
            raise QuantmillError(f"llama_decode failed with {status} ({listener.last_words()})", self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        native.llama_model_free(self._model)
