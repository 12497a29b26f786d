"""How long ggml takes for a matrix multiplication by weights of a type, on a device.

The weights lie in the buffer that llama.cpp's loader would choose: the first of the CPU's extra buffer types
(repacked, AMX) that supports the operation, else its ordinary one; on another device its own. The graph
multiplies by many matrices one after the other, as a model's does, and none is used twice before all others
were: what the caches hold is what they hold of a model.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from quantmill import machine
from quantmill.engine import ggml, library
from quantmill.engine.graph import Node
from quantmill.errors import QuantmillError

_CPU: Final = 0  # GGML_BACKEND_DEVICE_TYPE_CPU of ggml-backend.h
_WEIGHTS: Final = 1  # GGML_BACKEND_BUFFER_USAGE_WEIGHTS
_ASKED: Final = 512  # tokens of the operation that llama.cpp asks a buffer type for
_SAMPLE: Final = 1 << 16  # weights that are quantized, and repeated
_MOST_NODES: Final = 1024
_F32, _I32 = 0, 26


class Shape(NamedTuple):
    """The shape of a weight: `matrices` of rows and columns, of which a token takes `used`.

    `used` is 0 where they are no experts: a token takes all.
    """

    columns: int
    rows: int
    matrices: int = 1
    used: int = 0


class Timer:
    """Multiplications by weights on a device; `device` is ggml's pointer, 0 for the CPU. A context."""

    def __init__(self, device: int, threads: int) -> None:
        lib = _lib()
        self._device = device or lib.ggml_backend_dev_by_type(_CPU)
        self._on_cpu = lib.ggml_backend_dev_type(self._device) == _CPU
        self._backend = lib.ggml_backend_dev_init(self._device, None)
        if not self._backend:
            name = lib.ggml_backend_dev_name(self._device).decode()
            raise QuantmillError(f"the device {name} cannot be used", cure="see whether its driver works")
        if set_threads := self._registered("ggml_backend_set_n_threads"):
            c.CFUNCTYPE(None, c.c_void_p, c.c_int)(set_threads)(self._backend, threads)

    def __enter__(self) -> Timer:
        return self

    def __exit__(self, *_: object) -> None:
        _lib().ggml_backend_free(self._backend)

    @contextmanager
    def weights(self, kind: str, shape: Shape, size: int) -> Iterator[Weights]:
        """As many weights of this type and shape, one at least, as have about `size` bytes together."""
        lib = _lib()
        data = _rows(kind, shape)
        number = max(1, min(_MOST_NODES, -(-size // data.size)))
        with ExitStack() as stack:
            context = stack.enter_context(_context(number + 8))
            tensors = [_tensor(context, ggml.type_ids()[kind], *shape[:3]) for _ in range(number)]
            buffer_type = self._buffer_type(tensors[0], shape)
            buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
            if not buffer:
                raise QuantmillError(f"no room for {size} bytes of weights", cure="free some memory")
            stack.callback(lib.ggml_backend_buffer_free, buffer)
            lib.ggml_backend_buffer_set_usage(buffer, _WEIGHTS)
            for tensor in tensors:
                lib.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.size)
            name = lib.ggml_backend_buft_name(buffer_type).decode()
            own = lib.ggml_backend_dev_buffer_type(self._device)
            yield Weights(self._backend, own, name, shape, tensors)

    def _buffer_type(self, weight: int, shape: Shape) -> int:
        """Where llama.cpp would have a weight (`weight_buft_supported` of llama-model-loader.cpp)."""
        lib = _lib()
        own = int(lib.ggml_backend_dev_buffer_type(self._device))
        extra = self._registered("ggml_backend_dev_get_extra_bufts") if self._on_cpu else None
        if not extra:
            return own
        types = c.CFUNCTYPE(c.POINTER(c.c_void_p), c.c_void_p)(extra)(self._device)
        node = Node.from_address(weight)
        number = 0
        while types and types[number]:
            with _context(8) as context:
                operation = _operation(context, weight, shape, _ASKED)[0]
                node.buffer = lib.ggml_backend_buft_alloc_buffer(types[number], 0)
                supported = lib.ggml_backend_dev_supports_op(self._device, operation)
                lib.ggml_backend_buffer_free(node.buffer)
                node.buffer = None
            if supported:
                return int(types[number])
            number += 1
        return own

    def _registered(self, function: str) -> int | None:
        lib = _lib()
        registry = lib.ggml_backend_dev_backend_reg(self._device)
        address: int | None = lib.ggml_backend_reg_get_proc_address(registry, function.encode())
        return address


class Weights:
    """Weights of one type and shape on a device; `buffer` is the name of the buffer type that they lie in."""

    def __init__(self, backend: int, buffer_type: int, buffer: str, shape: Shape, tensors: list[int]) -> None:
        self._backend, self._buffer_type, self._tensors = backend, buffer_type, tensors
        self._shape = shape
        self.buffer = buffer

    def seconds(self, tokens: int, *, seconds: float, least: int) -> list[float]:
        """The times of a multiplication of `tokens` inputs by one of the weights, after a warm-up.

        Each is a mean over all of them; `least` times, and more until `seconds` are over.
        """
        lib, shape = _lib(), self._shape
        sweeps = max(1, shape.matrices // shape.used) if shape.used and tokens == 1 else 1
        weights = self._tensors
        number = min(_MOST_NODES, len(weights) * sweeps)
        draw = np.random.default_rng(0)
        with ExitStack() as stack:
            context = stack.enter_context(_context(3 * number + 8, nodes=3 * number + 8))
            graph = lib.ggml_new_graph_custom(context, 3 * number + 8, False)
            given, ids = 0, []
            for node in range(number):
                operation, given, experts = _operation(
                    context, weights[node % len(weights)], shape, tokens, given
                )
                lib.ggml_build_forward_expand(graph, operation)
                ids += [experts] if experts else []
            buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(context, self._buffer_type)
            if not buffer:
                raise QuantmillError(f"no room for {tokens} inputs", cure="free some memory")
            stack.callback(lib.ggml_backend_buffer_free, buffer)
            _set(given, draw.standard_normal(_elements(given)).astype(np.float32))
            order = draw.permutation(shape.matrices)
            for node, experts in enumerate(ids):
                _set(experts, _chosen(order, node // len(weights), shape.used, tokens))
            times = machine.undisturbed(lambda: self._compute(graph), least=least, seconds=seconds)
        return [time / number for time in times]

    def _compute(self, graph: int) -> None:
        status = _lib().ggml_backend_graph_compute(self._backend, graph)
        if status != 0:
            raise QuantmillError(f"ggml computes no multiplication there ({status})")


def _operation(context: int, weight: int, shape: Shape, tokens: int, given: int = 0) -> tuple[int, int, int]:
    """(the product of a weight and its input, the input, the experts' ids or 0); `given` is an input that is
    there already.
    """
    lib = _lib()
    if not shape.used:
        given = given or _tensor(context, _F32, shape.columns, tokens, shape.matrices)
        return lib.ggml_mul_mat(context, weight, given), given, 0
    given = given or _tensor(context, _F32, shape.columns, shape.used, tokens)
    ids = _tensor(context, _I32, shape.used, tokens)
    return lib.ggml_mul_mat_id(context, weight, given, ids), given, ids


def _chosen(order: np.ndarray, sweep: int, used: int, tokens: int) -> np.ndarray:
    """The experts [tokens, used] of each token, different ones of a token, and of the next sweep others."""
    starts = (np.arange(tokens)[:, None] + sweep) * used
    return order[(starts + np.arange(used)) % len(order)].astype(np.int32)


def _rows(kind: str, shape: Shape) -> ggml.Bytes:
    """The bytes of a weight: a few random rows, quantized, again and again."""
    rows = max(1, min(shape.rows, _SAMPLE // shape.columns))
    values = np.random.default_rng(0).standard_normal((rows, shape.columns)).astype(np.float32)
    importance = np.ones((1, shape.columns), np.float32)
    with ThreadPoolExecutor(1) as pool:
        sample = ggml.Conversion(
            pool, 1, values.reshape(-1).view(np.uint8), "f32", kind, (shape.columns, rows), importance
        ).result()
    return np.resize(sample, shape.rows * shape.matrices * sample.size // rows)


def _tensor(context: int, type_id: int, *shape: int) -> int:
    dimensions = (c.c_int64 * len(shape))(*shape)
    return int(_lib().ggml_new_tensor(context, type_id, len(shape), dimensions))


def _elements(tensor: int) -> int:
    return int(np.prod(list(Node.from_address(tensor).ne)))


def _set(tensor: int, values: np.ndarray) -> None:
    values = np.ascontiguousarray(values)
    _lib().ggml_backend_tensor_set(tensor, values.ctypes.data, 0, values.nbytes)


@contextmanager
def _context(tensors: int, nodes: int = 0) -> Iterator[int]:
    """A ggml context without memory for data."""
    lib = _lib()
    size = lib.ggml_tensor_overhead() * tensors + (
        lib.ggml_graph_overhead_custom(nodes, False) if nodes else 0
    )
    context = lib.ggml_init(ggml.InitParams(size, None, True))
    try:
        yield context
    finally:
        lib.ggml_free(context)


@cache
def _lib() -> c.CDLL:
    """The library with ggml's devices; the functions of its base are found through it too."""
    lib, base = library.load("ggml"), library.load("ggml-base")
    pointer, size, number = c.c_void_p, c.c_size_t, c.c_int
    declared: dict[str, tuple[c.CDLL, Any, list[Any]]] = {
        "ggml_backend_dev_by_type": (lib, pointer, [number]),
        "ggml_backend_dev_type": (base, number, [pointer]),
        "ggml_backend_dev_name": (base, c.c_char_p, [pointer]),
        "ggml_backend_dev_init": (base, pointer, [pointer, c.c_char_p]),
        "ggml_backend_free": (base, None, [pointer]),
        "ggml_backend_dev_backend_reg": (base, pointer, [pointer]),
        "ggml_backend_reg_get_proc_address": (base, pointer, [pointer, c.c_char_p]),
        "ggml_backend_dev_buffer_type": (base, pointer, [pointer]),
        "ggml_backend_dev_supports_op": (base, c.c_bool, [pointer, pointer]),
        "ggml_backend_buft_alloc_buffer": (base, pointer, [pointer, size]),
        "ggml_backend_buft_name": (base, c.c_char_p, [pointer]),
        "ggml_backend_buffer_free": (base, None, [pointer]),
        "ggml_backend_buffer_set_usage": (base, None, [pointer, number]),
        "ggml_backend_alloc_ctx_tensors_from_buft": (base, pointer, [pointer, pointer]),
        "ggml_backend_tensor_set": (base, None, [pointer, pointer, size, size]),
        "ggml_backend_graph_compute": (base, number, [pointer, pointer]),
        "ggml_init": (base, pointer, [ggml.InitParams]),
        "ggml_free": (base, None, [pointer]),
        "ggml_tensor_overhead": (base, size, []),
        "ggml_graph_overhead_custom": (base, size, [size, c.c_bool]),
        "ggml_new_graph_custom": (base, pointer, [pointer, size, c.c_bool]),
        "ggml_new_tensor": (base, pointer, [pointer, number, number, c.POINTER(c.c_int64)]),
        "ggml_mul_mat": (base, pointer, [pointer] * 3),
        "ggml_mul_mat_id": (base, pointer, [pointer] * 4),
        "ggml_build_forward_expand": (base, None, [pointer, pointer]),
    }
    for name, (where, result, arguments) in declared.items():
        function = getattr(where, name)
        function.restype, function.argtypes = result, arguments
        setattr(lib, name, function)
    return lib
