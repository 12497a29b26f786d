"""A loaded model's weights, found by name in its graph and replaced in place."""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterable
from functools import cache
from typing import Any

from quantmill.engine import library
from quantmill.engine.ggml import Bytes
from quantmill.engine.matmul import Node


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
        """Replace all bytes of a weight that is found, as they are in its own type."""
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


@cache
def _lib() -> c.CDLL:
    lib = library.load("ggml-base")
    lib.ggml_nbytes.restype, lib.ggml_nbytes.argtypes = c.c_size_t, [c.c_void_p]
    lib.ggml_backend_tensor_set.argtypes = [c.c_void_p, c.c_void_p, c.c_size_t, c.c_size_t]
    return lib
