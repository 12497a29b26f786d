"""ik_llama.cpp through ik-llama-cpp-python's low-level bindings: evaluation.

Its wrapper classes are left alone: they quantize without the importance matrix
where that cannot be read, and say so in passing.
"""

from __future__ import annotations

import ctypes as c
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import library
from quantmill.engine.evaluator import Listener, Tick, Tokens, fill, logits_at
from quantmill.errors import QuantmillError
from quantmill.formats.devices import Placement

native = library.bindings("ik")

_LOG_CALLBACK = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)

# What the bindings leave out.
_MORE: Final[tuple[tuple[str, list[Any], Any], ...]] = (
    ("llama_log_set", [_LOG_CALLBACK, c.c_void_p], None),
    ("llama_get_logits", [c.c_void_p], c.c_void_p),
    ("llama_synchronize", [c.c_void_p], None),
    ("llama_vocab_bos", [c.c_void_p], c.c_int32),
    ("llama_vocab_get_add_bos", [c.c_void_p], c.c_bool),
)


class Evaluator:
    """A model loaded by ik_llama.cpp with its own defaults; see `quantmill.engine.evaluator`."""

    def __init__(self, path: Path, *, context: int, batch: int, threads: int) -> None:
        lib = _lib()
        self._model = native.llama_model_load_from_file(
            str(path).encode(), native.llama_model_default_params()
        )
        if not self._model:
            message = _listener.last_words("error loading")
            raise QuantmillError(f"ik_llama.cpp cannot load it ({message})", path, "check the file")
        params = native.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = context, batch, 1
        params.n_ubatch = min(batch, params.n_ubatch)
        params.n_threads = params.n_threads_batch = threads
        self._context = native.llama_init_from_model(self._model, params)
        if not self._context:
            native.llama_free_model(self._model)
            raise QuantmillError(
                f"no context of {context} tokens ({_listener.last_words()})",
                path,
                "free some memory or ask for less",
            )
        vocab = native.llama_model_get_vocab(self._model)
        self.vocab_size: int = native.llama_vocab_n_tokens(vocab)
        self.bos: int | None = lib.llama_vocab_bos(vocab) if lib.llama_vocab_get_add_bos(vocab) else None
        self.batch, self.sequences = batch, 1
        self.placement: Placement | None = None  # its package is built for the CPU alone
        self.tick: Tick | None = None
        self._batch = native.llama_batch_init(batch, 0, 1)

    def clear(self) -> None:
        """Forget all positions."""
        native.llama_kv_cache_clear(self._context)

    def decode(self, tokens: Tokens, position: int, first_logits: int = 0) -> None:
        """Compute `tokens` [n] at `position`...; store logits for those from `first_logits` on."""
        if tokens.size > self.batch:
            raise ValueError(f"{tokens.size} tokens in a batch of {self.batch}")
        fill(self._batch, tokens, position, first_logits)
        status = native.llama_decode(self._context, self._batch)
        if status != 0:
            raise QuantmillError(f"llama_decode failed with {status} ({_listener.last_words()})")

    def logits(self, count: int) -> NDArray[np.float32]:
        """The stored logits [count, vocabulary] of the last `decode`; a view, valid until the next."""
        return logits_at(_lib().llama_get_logits(self._context), count, self.vocab_size)

    def wait(self) -> None:
        """Wait until all requested tokens are computed."""
        _lib().llama_synchronize(self._context)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        native.llama_batch_free(self._batch)
        native.llama_free(self._context)
        native.llama_free_model(self._model)


_listener = Listener()
_log_callback = _LOG_CALLBACK(_listener)  # kept alive


@cache
def _lib() -> c.CDLL:
    """The library, its functions declared and its structs checked."""
    lib = native._lib
    for name, argtypes, restype in _MORE:
        function = getattr(lib, name)
        function.argtypes, function.restype = argtypes, restype
    for name, struct in (
        ("llama_model_default_params", native.llama_model_params),
        ("llama_context_default_params", native.llama_context_params),
    ):
        written = _bytes_written(lib, name)
        if not written <= c.sizeof(struct) < written + c.alignment(struct):
            raise QuantmillError(
                f"{name} writes {written} bytes where {c.sizeof(struct)} were expected",
                "ik-llama-cpp-python",
                "install the pinned one",
            )
    lib.llama_log_set(_log_callback, None)
    native.llama_backend_init()
    return lib


def _bytes_written(lib: c.CDLL, name: str) -> int:
    """How many bytes a function that returns a struct writes: its size, less padding at its end.

    On x86-64, the only one that the package is built for, a large struct is
    returned through a pointer that is the function's first argument.
    """
    function = c.CFUNCTYPE(None, c.c_void_p)((name, lib))
    room = 4096
    ends = []
    for filled in (0x55, 0xAA):
        memory = (c.c_ubyte * room)(*[filled] * room)
        function(c.addressof(memory))
        ends.append(max((i + 1 for i in range(room) if memory[i] != filled), default=0))
    return max(ends)
