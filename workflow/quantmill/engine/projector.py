"""A multimodal projector in llama.cpp's libmtmd: pictures and sounds to vectors, without a language model."""

from __future__ import annotations

import ctypes as c
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import library
from quantmill.engine.llama import listener, load, native
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header

_TEXT: Final = 0  # MTMD_INPUT_CHUNK_TYPE_TEXT
_CURE: Final = "give a picture (JPEG, PNG, BMP) or a sound (WAV, MP3, FLAC), as the model takes"


def bindings() -> ModuleType:
    """llama-cpp-python's bindings of libmtmd; QuantmillError where this build has none."""
    library.use("mainline")
    try:
        from llama_cpp import mtmd_cpp
    except (ImportError, FileNotFoundError, RuntimeError, OSError) as error:
        what = f"this build of llama-cpp-python has no libmtmd ({error})"
        raise QuantmillError(what, "engine mainline", "build it anew: make -B env") from None
    return mtmd_cpp


class Projector:
    """A projector file, loaded on the CPU. `width` is that of the language model's embeddings.

    `beside` is a file of that language model, of which all but the weights is read: some projectors put
    tokens between the parts of a picture, and need its vocabulary. Without it they cannot be run.
    `handle` is libmtmd's own.
    """

    def __init__(self, path: Path, header: Header, threads: int, beside: Path | None = None) -> None:
        self._path, self._mtmd = path, bindings()
        self._callback = native.llama_log_callback(listener)  # kept alive
        for listen in (self._mtmd.mtmd_log_set, self._mtmd.mtmd_helper_log_set):
            listen(self._callback, c.c_void_p(0))
        params = self._mtmd.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.warmup, params.n_threads = False, False, False, threads
        self._model = None if beside is None else load(beside, _without_weights())
        self.handle = self._mtmd.mtmd_init_from_file(str(path).encode(), self._model, params)
        if not self.handle:
            raise QuantmillError(f"libmtmd cannot load it ({listener.last_words()})", path, "check the file")
        stacked = sum(re.search(r"deepstack.*fc1\.weight$", one.name) is not None for one in header.tensors)
        self.width = width_of(header) * (1 + stacked)

    def embed(self, medium: Path) -> NDArray[np.float32]:
        """The vectors [n, width] of a picture or a sound, in the order in which a language model reads them.

        QuantmillError where it is neither, or the model does not take it.
        """
        with self.parts(medium) as parts:
            return np.concatenate([self._encoded(part, medium) for part in parts if not self.is_text(part)])

    @contextmanager
    def parts(self, medium: Path, prompt: bytes | None = None) -> Iterator[list[Any]]:
        """libmtmd's chunks of a prompt with a picture or a sound at its `marker`, in order, while they last;
        without a prompt those of the medium alone.

        QuantmillError where it is neither, or the model does not take it.
        """
        mtmd = self._mtmd
        bitmap = mtmd.mtmd_helper_bitmap_init_from_file(self.handle, str(medium).encode(), False)
        if not bitmap:
            raise self._unread(medium)
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            sound = mtmd.mtmd_bitmap_is_audio(bitmap)
            if not (mtmd.mtmd_support_audio if sound else mtmd.mtmd_support_vision)(self.handle):
                raise self._unread(medium)
            whole = self.marker if prompt is None else prompt
            text = mtmd.mtmd_input_text(whole, len(whole), prompt is not None, prompt is not None)
            bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            status = mtmd.mtmd_tokenize(self.handle, chunks, c.byref(text), bitmaps, 1)
            if status != 0 and self._model is None and "vocab is not provided" in listener.last_words():
                what = "puts tokens between the parts of a picture, which only its language model has"
                raise QuantmillError(what, self._path, "name it: language_model, beside source")
            if status != 0:
                raise QuantmillError(f"libmtmd cannot prepare it ({listener.last_words()})", medium, _CURE)
            count = mtmd.mtmd_input_chunks_size(chunks)
            yield [mtmd.mtmd_input_chunks_get(chunks, number) for number in range(count)]
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

    @property
    def marker(self) -> bytes:
        """What stands in a prompt where the medium is."""
        return bytes(self._mtmd.mtmd_default_marker())

    def is_text(self, part: Any) -> bool:
        """Whether a chunk is text, and no part of a medium."""
        return bool(self._mtmd.mtmd_input_chunk_get_type(part) == _TEXT)

    def size(self, part: Any) -> int:
        """How many tokens, or vectors, a chunk is."""
        return int(self._mtmd.mtmd_input_chunk_get_n_tokens(part))

    def _unread(self, medium: Path) -> QuantmillError:
        return QuantmillError(f"is no picture or sound that {self._path.name} can read", medium, _CURE)

    def _encoded(self, chunk: Any, medium: Path) -> NDArray[np.float32]:
        if self._mtmd.mtmd_encode_chunk(self.handle, chunk) != 0:
            raise QuantmillError(f"libmtmd cannot encode it ({listener.last_words()})", medium, _CURE)
        values = self._mtmd.mtmd_get_output_embd(self.handle)
        return np.ctypeslib.as_array(values, (self.size(chunk), self.width)).copy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mtmd.mtmd_free(self.handle)
        if self._model is not None:
            native.llama_model_free(self._model)


def _without_weights() -> Any:
    """How a model is loaded of which the weights are not needed."""
    params = native.llama_model_default_params()
    params.n_gpu_layers, params.no_alloc, params.load_mode = 0, True, 0
    return params


def width_of(header: Header) -> int:
    """The width of the language model that a projector is for, as its metadata have it."""
    return header.number("clip.vision.projection_dim") or header.number("clip.audio.projection_dim")
