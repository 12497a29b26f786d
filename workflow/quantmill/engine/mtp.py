"""Multi-token prediction: llama.cpp's draft head, fed with the model's last hidden states.

llama.cpp loads the head on request (`load_mtp`) and computes it in a context of a type of its own. At
position p + 1 the head takes the token there and the state that the model left at p, and predicts the token
at p + 2. Source: common/speculative.cpp, `common_speculative_impl_draft_mtp`.
"""

from __future__ import annotations

import ctypes as c
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import library
from quantmill.engine.evaluator import Tokens, fill, logits_at
from quantmill.engine.graph import MatMul, Node, op_number
from quantmill.engine.llama import listener, load, native
from quantmill.engine.mainline import Observer
from quantmill.errors import QuantmillError


class Head:
    """A model with its head, on the CPU: `context` positions, at most `batch` tokens at once.

    `observe` sees the multiplications of the head, as `Evaluator`'s sees the model's.
    """

    def __init__(
        self, path: Path, *, context: int, batch: int, threads: int, observe: Observer | None = None
    ) -> None:
        self.batch = batch
        self._observe = observe
        self._raised: BaseException | None = None
        self._multiplications = op_number("MUL_MAT"), op_number("MUL_MAT_ID")
        self._callback = native.ggml_backend_sched_eval_callback(self._on_node)  # kept alive
        loading = native.llama_model_default_params()
        nowhere = (c.c_void_p * 1)()
        loading.load_mtp, loading.devices = True, c.addressof(nowhere)
        self._model = load(path, loading)
        self.width: int = native.llama_model_n_embd_out(self._model)
        self.heads: int = native.llama_model_n_layer_nextn(self._model)
        self._vocab = native.llama_model_get_vocab(self._model)
        self.vocab_size: int = native.llama_vocab_n_tokens(self._vocab)
        self.bos: int | None = (
            native.llama_vocab_bos(self._vocab) if native.llama_vocab_get_add_bos(self._vocab) else None
        )
        self._trunk = self._context(path, context, threads)
        self._head = self._context(path, context, threads, head=True)
        self._memory = native.llama_get_memory(self._head)
        self._extended = native.llama_batch_ext_init(self._head)
        self._batch = native.llama_batch_init(batch, 0, 1)
        _functions().set_embeddings(self._trunk, True, False)
        _functions().set_embeddings(self._head, True, False)

    def _context(self, path: Path, context: int, threads: int, head: bool = False) -> Any:
        params = native.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, self.batch, self.batch
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        if head:
            params.ctx_type, params.ctx_other = native.LLAMA_CONTEXT_TYPE_MTP, self._trunk
            if self._observe is not None:
                params.cb_eval = self._callback
        made = native.llama_init_from_model(self._model, params)
        if not made:
            raise QuantmillError(
                f"no context for its head ({listener.last_words()})", path, "free some memory"
            )
        return made

    def clear(self) -> None:
        """Forget all positions of both."""
        for context in (self._trunk, self._head):
            native.llama_memory_clear(native.llama_get_memory(context), True)

    def states(self, tokens: Tokens, position: int, first_logits: int = 0) -> NDArray[np.float32]:
        """The model's last hidden states [n, width] of `tokens` [n] at `position`...; a copy.

        `logits` has those of the model from `first_logits` on.
        """
        fill(self._batch, tokens, position, first_logits)
        self._check(native.llama_decode(self._trunk, self._batch))
        return self._states_of(self._trunk, len(tokens))

    def logits(self, count: int) -> NDArray[np.float32]:
        """The model's logits [count, vocabulary] of the last `states`; a view, valid until the next."""
        return logits_at(native.llama_get_logits(self._trunk), count, self.vocab_size)

    def ends(self, token: int) -> bool:
        """Whether the token ends a text."""
        return bool(native.llama_vocab_is_eog(self._vocab, token))

    def predict(
        self, tokens: Tokens, states: NDArray[np.float32], position: int, head: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What a head makes of `tokens` [n] at `position`..., each with the state [n, width] of the token
        before it: logits [n, vocabulary], a view valid until the next, and states [n, width]. It forgets what
        it had from `position` on.
        """
        native.llama_memory_seq_rm(self._memory, 0, position, -1)
        _functions().set_head(self._head, head)
        native.llama_batch_ext_clear(self._extended)
        rows = np.ascontiguousarray(states, np.float32)
        for index, token in enumerate(tokens.tolist()):
            at = native.llama_batch_ext_add_token(self._extended, 0, token)
            place = (c.c_int32 * 1)(position + index)
            row = native.llama_embd(
                rows[index : index + 1].ctypes.data_as(c.POINTER(c.c_float)), 1, self.width
            )
            if (
                at != index
                or not native.llama_batch_ext_set_pos(self._extended, at, place)
                or not native.llama_batch_ext_set_embd_token(self._extended, at, row)
                or not native.llama_batch_ext_set_output_logits(self._extended, at, True)
            ):
                raise ValueError(f"llama.cpp takes no token {token} with a state of {self.width} values")
        self._check(native.llama_process(self._head, native.LLAMA_PROCESS_TYPE_DECODE, self._extended))
        logits = logits_at(native.llama_get_logits(self._head), len(tokens), self.vocab_size)
        return logits, self._states_of(self._head, len(tokens))

    def _states_of(self, context: Any, count: int) -> NDArray[np.float32]:
        return logits_at(_functions().get_embeddings(context), count, self.width).copy()

    def _check(self, status: int) -> None:
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised
        if status != 0:
            raise QuantmillError(f"llama.cpp cannot compute the head: {status} ({listener.last_words()})")

    def _on_node(self, pointer: int, ask: bool, _: Any) -> bool:
        """ggml's eval callback. An exception here would go unseen: it is kept."""
        try:
            node = Node.from_address(pointer)
            if node.op not in self._multiplications:
                return not ask
            assert self._observe is not None
            return self._observe(MatMul(node, ask, indirect=node.op == self._multiplications[1]))
        except BaseException as error:
            self._raised = error
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        native.llama_batch_free(self._batch)
        native.llama_batch_ext_free(self._extended)
        native.llama_free(self._head)
        native.llama_free(self._trunk)
        native.llama_model_free(self._model)


class _Functions:
    """Of llama-ext.h, whose functions have the names of C++."""

    def __init__(self) -> None:
        lib = library.load("llama")
        self.set_embeddings = lib["_Z26llama_set_embeddings_nextnP13llama_contextbb"]
        self.set_embeddings.restype = None
        self.set_embeddings.argtypes = [c.c_void_p, c.c_bool, c.c_bool]
        self.get_embeddings = lib["_Z26llama_get_embeddings_nextnP13llama_context"]
        self.get_embeddings.restype, self.get_embeddings.argtypes = c.c_void_p, [c.c_void_p]
        self.set_head = lib["_Z28llama_set_nextn_layer_offsetP13llama_contexti"]
        self.set_head.restype, self.set_head.argtypes = None, [c.c_void_p, c.c_int32]


_made: list[_Functions] = []


def _functions() -> _Functions:
    if not _made:
        _made.append(_Functions())
    return _made[0]
