"""Nodes of ggml's graph as the eval callback shows them: weights and inputs; weights replaced in place."""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import library
from quantmill.engine.ggml import Bytes
from quantmill.errors import QuantmillError

_F32 = 0


class Node(c.Structure):
    """`struct ggml_tensor` of ggml.h (ggml 0.25)."""

    _fields_ = (
        ("type", c.c_int),
        ("buffer", c.c_void_p),
        ("ne", c.c_int64 * 4),
        ("nb", c.c_size_t * 4),
        ("op", c.c_int),
        ("op_params", c.c_int32 * 16),
        ("flags", c.c_int32),
        ("src", c.c_void_p * 10),
        ("view_src", c.c_void_p),
        ("view_offs", c.c_size_t),
        ("data", c.c_void_p),
        ("name", c.c_char * 64),
        ("extra", c.c_void_p),
        ("padding", c.c_char * 8),
    )


if c.sizeof(Node) != 336:
    raise QuantmillError("struct ggml_tensor has another layout here", cure="a 64-bit system is needed")


@dataclass(frozen=True)
class MatMul:
    """One multiplication of a weight by its input.

    `ask` is True before it is computed (the observer answers whether it wants
    the data) and False after (the observer answers whether to go on: False
    leaves the rest of the graph uncomputed). `indirect` multiplications pick a
    matrix (an expert) a row.
    """

    node: Node
    ask: bool
    indirect: bool

    @property
    def weight(self) -> str:
        """The weight's tensor name, without a backend's decoration (`CUDA0#name#0`)."""
        name = _at(self.node.src[0]).name.decode(errors="replace")
        return name.split("#")[1] if "#" in name else name

    @property
    def matrices(self) -> int:
        """How many matrices the weight stacks (experts)."""
        ne = _at(self.node.src[0]).ne
        return int(ne[2] * ne[3])

    @property
    def input_identity(self) -> tuple[int, ...]:
        """Identifies what is multiplied within one graph: weights that share it have the same.

        The addresses of the input and, where indirect, of the experts' ids; and the matrices.
        """
        ids = self.node.src[2] or 0 if self.indirect else 0
        return int(self.node.src[1]), int(ids), self.matrices

    @property
    def input_name(self) -> str:
        """The name of the node that the input is, or is a view of: what computes it."""
        node = _at(self.node.src[1])
        while node.view_src:
            node = _at(node.view_src)
        return node.name.decode(errors="replace")

    @property
    def input_is_f32(self) -> bool:
        """Whether the input is f32, as activations are."""
        return bool(_at(self.node.src[1]).type == _F32)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The input's dimensions, columns first: [columns, rows, ...]."""
        return tuple(_at(self.node.src[1]).ne)

    def input(self) -> NDArray[np.float32]:
        """The input, f32 [ne3, ne2, ne1, columns]; read in place where it lies in host memory."""
        return _array(_at(self.node.src[1]), np.dtype(np.float32))

    def experts(self) -> NDArray[np.int32]:
        """Of an indirect multiplication: the expert of each row, i32 [tokens, experts used]."""
        return _array(_at(self.node.src[2]), np.dtype(np.int32))[0, 0]


class Weights:
    """Those of the named tensors of a model that its graph reads.

    `see` is ggml's eval callback: it looks at every operand, whatever the
    operation (embeddings are looked up, experts multiplied indirectly). A name
    may stand for two tensors, where tied embeddings lie on two devices.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._wanted = {name.encode() for name in names}
        self._found: dict[str, set[int]] = {}
        self._raised: BaseException | None = None

    def see(self, pointer: int, ask: bool, _: Any) -> bool:
        """Note a node's operands. An exception here would go unseen: it is kept for `check`."""
        try:
            for address in filter(None, Node.from_address(pointer).src):
                self._note(address)
        except BaseException as error:
            self._raised = error
        return not ask

    def check(self) -> None:
        """Raise what `see` could not."""
        if self._raised is not None:
            raise self._raised

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def set(self, name: str, data: Bytes) -> None:
        """Replace all bytes of a weight that the graph reads, as they are in its own type."""
        for address in self._found[name]:
            size = _lib().ggml_nbytes(address)
            if size != data.nbytes:
                raise ValueError(f"{data.nbytes} bytes for {name}, which has {size}")
            _lib().ggml_backend_tensor_set(address, data.ctypes.data, 0, size)

    def _note(self, address: int) -> None:
        node = Node.from_address(address)
        while node.view_src:  # a weight that is read in another shape
            address = node.view_src
            node = Node.from_address(address)
        if node.name in self._wanted:
            self._found.setdefault(node.name.decode(), set()).add(address)


def set_values(pointer: int, values: NDArray[np.float32]) -> None:
    """Replace all values of a computed node, f32. ValueError where it has another number of them."""
    size = _lib().ggml_nbytes(pointer)
    if size != values.nbytes:
        raise ValueError(f"{values.nbytes} bytes for a node that has {size}")
    _lib().ggml_backend_tensor_set(pointer, np.ascontiguousarray(values).ctypes.data, 0, size)


def _at(address: int) -> Node:
    return Node.from_address(address)


def _array(node: Node, dtype: np.dtype[Any]) -> NDArray[Any]:
    shape, strides = tuple(node.ne)[::-1], tuple(node.nb)[::-1]
    span = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + dtype.itemsize
    lib = _lib()
    if lib.ggml_backend_buffer_is_host(node.buffer):
        memory: Any = (c.c_char * span).from_address(node.data)
    else:
        memory = c.create_string_buffer(span)
        lib.ggml_backend_tensor_get(c.addressof(node), memory, 0, span)
    return np.ndarray(shape, dtype, memory, 0, strides)


@cache
def _lib() -> c.CDLL:
    lib = library.load("ggml-base")
    lib.ggml_op_name.restype, lib.ggml_op_name.argtypes = c.c_char_p, [c.c_int]
    lib.ggml_backend_buffer_is_host.restype = c.c_bool
    lib.ggml_backend_buffer_is_host.argtypes = [c.c_void_p]
    for copy in (lib.ggml_backend_tensor_get, lib.ggml_backend_tensor_set):
        copy.restype, copy.argtypes = None, [c.c_void_p, c.c_void_p, c.c_size_t, c.c_size_t]
    lib.ggml_nbytes.restype, lib.ggml_nbytes.argtypes = c.c_size_t, [c.c_void_p]
    return lib


@cache
def op_number(name: str) -> int:
    """The number of a graph operation, as the library itself names it."""
    return next(op for op in range(200) if _lib().ggml_op_name(op) == name.encode())
