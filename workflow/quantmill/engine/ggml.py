"""ggml's quantizers and dequantizers, through the one library of the process's engine that has them.

Rows are independent, so a tensor is cut into runs of rows; each run is
dequantized to f32 and quantized by one thread, which keeps the f32 copy in the
cache and the memory bounded. ctypes releases the GIL in native calls. The
bytes do not depend on the threads nor on the cuts.
"""

from __future__ import annotations

import ctypes as c
import threading
from concurrent.futures import Executor, Future
from functools import cache

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import library
from quantmill.errors import QuantmillError

Bytes = NDArray[np.uint8]

# The library with the quantizers, and its GGML_TYPE_COUNT: ggml_type_name reads past its table beyond it.
_LIBRARY = {"mainline": ("ggml-base", 43), "ik": ("ggml", 400)}

# A run of rows holds at least this many elements (llama-quant.cpp takes the same),
# and at most so many that its f32 copy stays within a few MiB.
_RUN_ELEMENTS = 32 * 512


class _Traits(c.Structure):
    """`struct ggml_type_traits` of ggml.h; of ik_llama.cpp's the beginning, which is the same."""

    _fields_ = (
        ("type_name", c.c_char_p),
        ("blck_size", c.c_int64),
        ("blck_size_interleave", c.c_int64),
        ("type_size", c.c_size_t),
        ("is_quantized", c.c_bool),
        ("to_float", c.c_void_p),
        ("from_float_ref", c.c_void_p),
    )


class InitParams(c.Structure):
    """`struct ggml_init_params` of ggml.h."""

    _fields_ = (("mem_size", c.c_size_t), ("mem_buffer", c.c_void_p), ("no_alloc", c.c_bool))


class _TraitsIk(c.Structure):
    """`ggml_type_traits_t` of ik_llama.cpp's ggml.h, whose functions return it by value."""

    _fields_ = (("head", _Traits), ("rest", c.c_char * (128 - c.sizeof(_Traits))))


_TO_FLOAT = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_int64)


@cache
def _lib() -> c.CDLL:
    lib = library.load(_LIBRARY[library.in_use()][0])
    lib.ggml_type_name.restype, lib.ggml_type_name.argtypes = c.c_char_p, [c.c_int]
    lib.ggml_row_size.restype, lib.ggml_row_size.argtypes = c.c_size_t, [c.c_int, c.c_int64]
    lib.ggml_quantize_requires_imatrix.restype = c.c_bool
    lib.ggml_quantize_requires_imatrix.argtypes = [c.c_int]
    lib.ggml_validate_row_data.restype = c.c_bool
    lib.ggml_validate_row_data.argtypes = [c.c_int, c.c_void_p, c.c_size_t]
    lib.ggml_quantize_chunk.restype = c.c_size_t
    start_rows_columns = [c.c_int64] * 3
    lib.ggml_quantize_chunk.argtypes = [c.c_int, c.c_void_p, c.c_void_p, *start_rows_columns, c.c_void_p]
    if library.in_use() == "ik":  # which reads f16 by a table that is made here
        lib.ggml_init.restype, lib.ggml_init.argtypes = c.c_void_p, [InitParams]
        lib.ggml_free.restype, lib.ggml_free.argtypes = None, [c.c_void_p]
        lib.ggml_free(lib.ggml_init(InitParams(0, None, True)))
    return lib


@cache
def _traits(type_id: int) -> _Traits:
    """The library's traits of a type. QuantmillError if its struct has another layout than ours."""
    if library.in_use() == "mainline":
        get = _lib().ggml_get_type_traits
        get.restype, get.argtypes = c.POINTER(_Traits), [c.c_int]
        q4_k, traits = get(12).contents, get(type_id).contents
    else:
        get = _lib().ggml_internal_get_type_traits
        get.restype, get.argtypes = _TraitsIk, [c.c_int]
        q4_k, traits = get(12).head, get(type_id).head
    if q4_k.type_name != b"q4_K" or (q4_k.blck_size, q4_k.type_size) != (256, 144):
        package = library.ENGINES[library.in_use()].package
        raise QuantmillError("its ggml_type_traits has another layout", package, "install the pinned one")
    return traits


@cache
def type_ids() -> dict[str, int]:
    """ggml's types by name, as the library itself names them."""
    count = _LIBRARY[library.in_use()][1]
    names = ((_lib().ggml_type_name(i) or b"").decode() for i in range(count))
    return {
        name: i for i, name in enumerate(names) if name and "REMOVED" not in name and name != "DEPRECATED"
    }


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of one row of `columns` elements."""
    return int(_lib().ggml_row_size(type_ids()[type_name], columns))


def requires_imatrix(type_name: str) -> bool:
    """Whether ggml's quantizer of this type aborts without importance values."""
    return bool(_lib().ggml_quantize_requires_imatrix(type_ids()[type_name]))


def is_valid(type_name: str, rows: Bytes) -> bool:
    """Whether ggml_validate_row_data finds no fault (a NaN, an infinite scale) in whole rows of a type."""
    return bool(_lib().ggml_validate_row_data(type_ids()[type_name], rows.ctypes.data, rows.size))


class Conversion:
    """One tensor on its way from one type to another, on the threads of a pool.

    `source` is the tensor's bytes; `shape` its dimensions, the row's first;
    `importance` f32 [matrices, columns] or None. Values are those of
    llama_model_quantize: the same dequantization, the same quantizer, the same
    validation. `result()` waits, and raises QuantmillError where the data do
    not validate (a NaN in the source, say). The type must be one that
    ggml_quantize_chunk writes: any other aborts the process.
    """

    def __init__(
        self,
        pool: Executor,
        threads: int,
        source: Bytes,
        source_type: str,
        type_name: str,
        shape: tuple[int, ...],
        importance: NDArray[np.float32] | None,
    ) -> None:
        if importance is None and requires_imatrix(type_name):
            raise QuantmillError(f"{type_name} needs an importance matrix", cure="configure `imatrix`")
        self._source, self._importance = np.ascontiguousarray(source), importance
        self._from, self._to = type_ids()[source_type], type_ids()[type_name]
        self._columns, self._rows_a_matrix = shape[0], shape[1]
        rows = int(np.prod(shape[1:], dtype=np.int64))
        self._row_in, self._row_out = row_bytes(source_type, shape[0]), row_bytes(type_name, shape[0])
        traits = _traits(self._from)
        self._plain_rows = self._row_in == shape[0] // traits.blck_size * traits.type_size
        self._out = np.empty(rows * self._row_out, np.uint8)
        at_least = -(-_RUN_ELEMENTS // shape[0])
        run = max(at_least, min(rows // (2 * threads), 64 * at_least))
        starts = (
            (first, min(run, matrix + self._rows_a_matrix - first))
            for matrix in range(0, rows, self._rows_a_matrix)
            for first in range(matrix, matrix + self._rows_a_matrix, run)
        )
        self._runs: list[Future[bool]] = [pool.submit(self._run, *start) for start in starts]

    def result(self) -> Bytes:
        """The converted tensor's bytes."""
        if not all(run.result() for run in self._runs):
            raise QuantmillError("quantized data do not validate", cure="the source may hold NaN or infinity")
        return self._out

    def _run(self, first: int, rows: int) -> bool:
        lib, elements = _lib(), rows * self._columns
        source = self._source.ctypes.data + first * self._row_in
        out = self._out.ctypes.data + first * self._row_out
        values = None
        if self._from != 0:
            values = _scratch(elements)
            # By rows: some types of ik_llama.cpp have a scale before each row's blocks.
            at_once = rows if self._plain_rows else 1
            for row in range(0, rows, at_once):
                _to_float(self._from)(
                    source + row * self._row_in,
                    values[row * self._columns :].ctypes.data,
                    at_once * self._columns,
                )
            source = values.ctypes.data
        weights = None
        if self._importance is not None:
            weights = self._importance[first // self._rows_a_matrix].ctypes.data
        size = lib.ggml_quantize_chunk(self._to, source, out, 0, rows, self._columns, weights)
        return bool(lib.ggml_validate_row_data(self._to, out, size))


_thread = threading.local()


def _scratch(elements: int) -> NDArray[np.float32]:
    """An f32 buffer of this thread's own, kept: fresh pages cost more than the dequantizing itself."""
    buffer: NDArray[np.float32] | None = getattr(_thread, "values", None)
    if buffer is None or buffer.size < elements:
        buffer = _thread.values = np.empty(elements, np.float32)
    return buffer


@cache
def _to_float(type_id: int) -> c._FuncPointer:
    traits = _traits(type_id)
    if not traits.to_float:
        raise QuantmillError(f"{traits.type_name.decode()} cannot be dequantized")
    return _TO_FLOAT(traits.to_float)
