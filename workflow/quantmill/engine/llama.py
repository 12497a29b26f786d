"""llama.cpp's library: its log, and how it loads a model."""

from __future__ import annotations

import ctypes as c
from functools import cache
from pathlib import Path
from typing import Any

from quantmill.engine import library
from quantmill.engine.evaluator import Listener
from quantmill.engine.placement import Parameters
from quantmill.errors import QuantmillError
from quantmill.formats.devices import Placement
from quantmill.offload import Offload, chosen

native = library.bindings("mainline")

listener = Listener()
_log_callback = native.llama_log_callback(listener)  # kept alive


def load(path: Path, params: Any) -> Any:
    """The model at `path`, loaded with llama.cpp's parameters. QuantmillError with its own words."""
    quiet()
    model = native.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        message = listener.last_words("error loading")
        raise QuantmillError(f"llama.cpp cannot load it ({message})", path, cure_of(message))
    return model


def cure_of(message: str) -> str:
    """What to do where llama.cpp does not load a model with these words."""
    if "allocat" in message:
        return "it has no room there: set `offload: {gpu_layers: auto}`, or free some memory"
    return "check the file"


def place(
    path: Path, loading: Any, params: Any, offload: Offload | None
) -> tuple[Any, Any, Placement | None]:
    """A model, its context, and where they are, by llama.cpp's parameters of both and what the run wants of
    devices; None: the CPU alone.

    QuantmillError where the devices have no room, or are not there.
    """
    nowhere = (c.c_void_p * 1)()  # a list of devices that ends with its first entry
    if offload is None:
        loading.devices = c.addressof(nowhere)
        model = load(path, loading)
        return model, _context(path, model, params), None
    parameters = _fitted(path, loading, params, offload)
    loading.n_gpu_layers = parameters.layers
    listener.buffers.clear()
    model = load(path, loading)
    context = _context(path, model, params)
    return model, context, parameters.placement(listener.buffers, native.llama_model_n_layer(model) + 1)


def fitting(path: Path, context: int) -> int:
    """How many layers of a model fit on the wanted devices, beside a context of so many tokens."""
    loading, params = native.llama_model_default_params(), native.llama_context_default_params()
    params.n_ctx = context
    return _fitted(path, loading, params, chosen()).layers


def _fitted(path: Path, loading: Any, params: Any, offload: Offload) -> Parameters:
    """What the run wants, set in llama.cpp's parameters, with the number of layers that fit."""
    quiet()
    parameters = Parameters(offload, path)
    parameters.of_model(loading)
    parameters.of_context(params)
    parameters.fit(lambda layers: _simulated(path, loading, params, layers))
    return parameters


def _context(path: Path, model: Any, params: Any) -> Any:
    context = native.llama_init_from_model(model, params)
    if not context:
        native.llama_model_free(model)
        raise QuantmillError(
            f"no context of {params.n_ctx} tokens ({listener.last_words()})",
            path,
            "free some memory or ask for less",
        )
    return context


def _simulated(path: Path, loading: Any, params: Any, layers: int) -> list[str]:
    """What llama.cpp says of its buffers for a number of layers on devices, of which it allocates none."""
    trial = type(loading).from_buffer_copy(loading)
    trial.n_gpu_layers, trial.no_alloc, trial.load_mode = layers, True, 0
    listener.buffers.clear()
    model = load(path, trial)
    context = native.llama_init_from_model(model, params)
    if context:
        native.llama_free(context)
    native.llama_model_free(model)
    return list(listener.buffers) if context else []


@cache
def quiet() -> None:
    """Have llama.cpp and ggml say to the listener what they would print."""
    native.llama_log_set(_log_callback, c.c_void_p(0))
    native.llama_backend_init()
