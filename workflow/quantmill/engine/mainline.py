"""llama.cpp through llama-cpp-python's low-level bindings: evaluation and observation."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import library
from quantmill.engine.evaluator import Tick, Tokens, fill, logits_at
from quantmill.engine.graph import MatMul, Node, Weights, op_number, set_values
from quantmill.engine.llama import listener, load, native, place
from quantmill.errors import QuantmillError
from quantmill.offload import chosen

Observer = Callable[[MatMul], bool]
Replace = Callable[[str], NDArray[np.float32] | None]

_TICKS: Final = 8  # of a decode
_STEPS_A_LAYER: Final = 40  # nodes of a graph, about: how many there are is known after the first
_GLANCE: Final = 32  # tokens of a graph that is computed to see which weights it uses


class Evaluator:
    """A model loaded by llama.cpp; see `quantmill.engine.evaluator`.

    `context` is the number of positions of each of its `sequences`, `batch` the
    most tokens a call of `decode` computes at once. `placement` says what devices
    have of it, as the run wants (`quantmill.offload`); None: all is on the CPU.
    `observe` sees every matrix multiplication whose weight is a tensor of the
    model before it is computed (`ask`, whether it is wanted) and after (its
    input); see `MatMul`. What it raises is raised by `decode`. `replace` is asked
    for each other node by its name: the values it gives take the place of those
    computed. Without `gpus` everything is computed on the CPU. `pooling` (llama.cpp's number) is how the
    vectors of a text's tokens become its embedding, of a model that gives one in place of logits.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        batch: int,
        threads: int,
        sequences: int = 1,
        observe: Observer | None = None,
        replace: Replace | None = None,
        writable: bool = False,
        gpus: bool = True,
        pooling: int | None = None,
    ) -> None:
        self._observe, self._replace = observe, replace
        self._raised: BaseException | None = None
        self._ended = self._discard = False
        self._multiplications = op_number("MUL_MAT"), op_number("MUL_MAT_ID")
        loading = native.llama_model_default_params()
        if writable:
            # Weights lie in memory of their own, as they stand in the file: neither
            # mapped (load_mode), nor read on demand (lazy_mode), nor repacked.
            loading.load_mode = loading.lazy_mode = 0
            loading.use_extra_bufts = False
        params = native.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = context * sequences, batch, sequences
        offload = chosen() if gpus else None
        wanted = offload.ubatch or offload.batch if offload else 0
        params.n_ubatch = min(batch, wanted or params.n_ubatch)
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self._callback = native.ggml_backend_sched_eval_callback(self._on_node)  # kept alive
        self._abort = native.ggml_abort_callback(self._on_step)
        self._tick: Tick | None = None
        if pooling is not None:
            params.embeddings, params.pooling_type, params.n_ubatch = True, pooling, batch
        if observe is not None:
            params.n_ubatch = batch
            params.cb_eval = self._callback
            params.abort_callback = self._abort
        self._model, self._context, self.placement = place(path, loading, params, offload)
        self._aborts = observe is not None and self.placement is None
        self._memory = native.llama_get_memory(self._context)
        vocab = native.llama_model_get_vocab(self._model)
        self.vocab_size: int = native.llama_vocab_n_tokens(vocab)
        self.bos: int | None = (
            native.llama_vocab_bos(vocab) if native.llama_vocab_get_add_bos(vocab) else None
        )
        self._batch = native.llama_batch_init(batch, 0, 1)
        self.batch, self.sequences = batch, sequences
        self._ubatch = params.n_ubatch
        self._graph = _STEPS_A_LAYER * native.llama_model_n_layer(self._model)
        self._step = self._of_steps = self._computed = 0

    @property
    def tick(self) -> Tick | None:
        """Called with a number of tokens while these are computed, on a CPU: about eight times a `decode`."""
        return self._tick

    @tick.setter
    def tick(self, tick: Tick | None) -> None:
        self._tick = tick
        if self._observe is None:  # it is called for every node: of one token it would cost a twentieth
            callback = self._abort if tick else native.ggml_abort_callback()
            native.llama_set_abort_callback(self._context, callback, None)

    def _on_step(self, _: Any) -> bool:
        """ggml's abort callback, between two nodes."""
        if self._tick is not None:
            self._step += 1
            every = self._of_steps // _TICKS
            if every and self._step % every == 0 and self._step < _TICKS * every:
                self._tick(self._computed / _TICKS)
        return self._ended

    def clear(self) -> None:
        """Forget all positions."""
        native.llama_memory_clear(self._memory, True)

    def forget(self, position: int) -> bool:
        """Forget the positions from `position` on; False, and nothing forgotten, where a model cannot."""
        return bool(native.llama_memory_seq_rm(self._memory, 0, position, -1))

    def reserve(self) -> None:
        """Have room for the logits of a whole batch, and its memory back until it is written to.

        llama.cpp writes zeros into that room when it allocates it: for a large
        vocabulary more than all else that an observed run needs.
        """
        if not self._aborts:
            return
        nothing = np.zeros((self.sequences, self.batch // self.sequences), np.int32)
        self._decode(nothing, 0, 0, ended=True)
        library.release(native.llama_get_logits(self._context), 4 * self.vocab_size * self.batch)

    def decode(self, tokens: Tokens, position: int, first_logits: int = 0, *, discard: bool = False) -> None:
        """Compute `tokens` [n] at `position`...; store logits for those from `first_logits` on.

        `tokens` [sequences, n] are computed side by side, each sequence as if it were alone. `discard`: only
        what the observer sees is needed. Once it ends the graph, no logits and no positions are stored.
        """
        self._discard = discard
        self._decode(tokens, position, first_logits)

    def _decode(self, tokens: Tokens, position: int, first_logits: int, ended: bool = False) -> None:
        if tokens.size > self.batch:
            raise ValueError(f"{tokens.size} tokens in a batch of {self.batch}")
        fill(self._batch, tokens, position, first_logits)
        self._computed, self._step = tokens.size, 0
        graphs = -(-tokens.size // self._ubatch)
        self._of_steps = self._graph * graphs
        self._ended = ended
        status = native.llama_decode(self._context, self._batch)
        if self._step and not ended:
            self._graph = self._step // graphs
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised
        if status != 0 and not self._ended:
            raise QuantmillError(f"llama_decode failed with {status} ({listener.last_words()})")

    def logits(self, count: int) -> NDArray[np.float32]:
        """The stored logits [count, vocabulary] of the last `decode`; a view, valid until the next."""
        return logits_at(native.llama_get_logits(self._context), count, self.vocab_size)

    def embedding(self, width: int) -> NDArray[np.float32]:
        """The embedding [width] of the text of the last `decode`; of a reranker its scores."""
        pointer = native.llama_get_embeddings_seq(self._context, 0)
        if not pointer:
            raise QuantmillError(f"llama.cpp gives no embedding of it ({listener.last_words()})")
        return logits_at(pointer, 1, width)[0].copy()

    def wait(self) -> None:
        """Wait until all requested tokens are computed."""
        native.llama_synchronize(self._context)

    def weights(self, names: Iterable[str]) -> Weights:
        """Of the tensors named those that the model's graph uses, to be replaced in place.

        Of a `writable` model alone. Weights belong to the model and not to a
        context: a small one with an eval callback finds them, so that the model's
        own runs without.
        """
        weights = Weights(names)
        callback = native.ggml_backend_sched_eval_callback(weights.see)
        params = native.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = _GLANCE
        params.cb_eval, params.no_perf = callback, True
        context = native.llama_init_from_model(self._model, params)
        if not context:
            raise QuantmillError(f"no context ({listener.last_words()})", cure="free some memory")
        tokens = np.zeros(_GLANCE, np.int32)
        batch = native.llama_batch_get_one(tokens.ctypes.data_as(c.POINTER(c.c_int32)), _GLANCE)
        status = native.llama_decode(context, batch)
        native.llama_free(context)
        if status != 0:
            raise QuantmillError(f"llama_decode failed with {status} ({listener.last_words()})")
        weights.check()
        return weights

    def _on_node(self, pointer: int, ask: bool, _: Any) -> bool:
        """ggml's eval callback. An exception here would count as `False` and go unseen: it is kept."""
        if self._ended:
            return True
        try:
            node = Node.from_address(pointer)
            if node.op not in self._multiplications:
                values = None if self._replace is None else self._replace(node.name.decode(errors="replace"))
                if values is not None and not ask:
                    set_values(pointer, values)
                return not ask or values is not None
            assert self._observe is not None
            go_on = self._observe(MatMul(node, ask, indirect=node.op == self._multiplications[1]))
            # False ends the graph; on a CPU it can be aborted, which also spares copying logits not computed.
            self._ended = self._discard and self._aborts and not ask and not go_on
            return go_on or self._ended
        except BaseException as error:
            self._raised = error
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        native.llama_batch_free(self._batch)
        native.llama_free(self._context)
        native.llama_model_free(self._model)


def probe(path: Path, answers: str, *, tokens: int, threads: int) -> list[str]:
    """Load a GGUF and evaluate a few tokens; what llama.cpp warned of. For a process of its own.

    `answers` is what they give: `logits`, `embeddings`; or empty, and nothing but the header is read.
    QuantmillError where it does not load, fails, or gives what is not finite.
    """
    loading = native.llama_model_default_params()
    # On the CPU and mapped, without copies of the weights: it may be larger than any memory.
    loading.n_gpu_layers, loading.load_mode, loading.use_extra_bufts = 0, 1, False
    if not answers:
        loading.no_alloc, loading.load_mode, loading.load_mtp = True, 0, True
    model = load(path, loading)
    if answers:
        values = _first_answer(model, answers == "embeddings", tokens, threads)
        if not np.isfinite(values).all():
            raise QuantmillError(f"llama.cpp computes {answers} of it that are not finite")
    native.llama_model_free(model)
    return listener.lines


def _first_answer(model: Any, embeddings: bool, count: int, threads: int) -> NDArray[np.float32]:
    """The embedding, or the logits, of the last of `count` tokens; of an encoder-decoder of its first."""
    params = native.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = count
    params.n_threads = params.n_threads_batch = threads
    params.embeddings, params.no_perf = embeddings, True
    if embeddings:
        params.pooling_type = 0  # of each token, whatever the model would make of them
    context = native.llama_init_from_model(model, params)
    if not context:
        raise QuantmillError(f"llama.cpp makes no context of it ({listener.last_words()})")
    vocab = native.llama_model_get_vocab(model)
    words = native.llama_vocab_n_tokens(vocab)
    tokens = np.linspace(0, words - 1, count).astype(np.int32)
    tokens[0] = max(native.llama_vocab_bos(vocab), 0)
    steps = [(native.llama_decode, tokens)]
    if native.llama_model_has_encoder(model):
        start = max(native.llama_model_decoder_start_token(model), 0)
        steps = [(native.llama_encode, tokens), (native.llama_decode, np.array([start], np.int32))]
        del steps[1 + native.llama_model_has_decoder(model) :]
    for compute, given in steps:
        pointer = given.ctypes.data_as(c.POINTER(c.c_int32))
        status = compute(context, native.llama_batch_get_one(pointer, len(given)))
        if status != 0:
            raise QuantmillError(f"llama.cpp cannot evaluate it: {status} ({listener.last_words()})")
    last = (native.llama_get_embeddings_ith if embeddings else native.llama_get_logits_ith)(context, -1)
    if not last:
        raise QuantmillError(f"llama.cpp gives no {'embeddings' if embeddings else 'logits'} of it")
    size = native.llama_model_n_embd_out(model) if embeddings else words
    values = logits_at(last, 1, size).copy()
    native.llama_free(context)
    return values
