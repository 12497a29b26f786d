"""Whether the data of a file's tensors are sound: every block of every tensor, on all threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Final, NamedTuple

import numpy as np

from quantmill.engine import ggml
from quantmill.files import part_of
from quantmill.formats.ggufio import Header, Tensor
from quantmill.model.finite import Search
from quantmill.progress import Progress

_RUN_BYTES: Final = 8 << 20


class _Run(NamedTuple):
    """Whole rows of a tensor: bytes from its start, and how many."""

    tensor: Tensor
    start: int
    size: int


def faults(header: Header, threads: int, progress: Progress) -> list[str]:
    """A line for each tensor that ggml_validate_row_data of the process's engine refuses."""

    def refused(run: _Run) -> Tensor | None:
        data = np.frombuffer(_data(header, run), np.uint8)
        sound = ggml.is_valid(run.tensor.type, data)
        progress.add(run.size)
        return None if sound else run.tensor

    with ThreadPoolExecutor(threads) as pool:
        tensors = pool.map(refused, _runs(header))
        return [_fault(header, tensor) for tensor in dict.fromkeys(tensors) if tensor is not None]


def _runs(header: Header) -> Iterator[_Run]:
    for tensor in header.tensors:
        row, rows = ggml.row_bytes(tensor.type, tensor.shape[0]), prod(tensor.shape[1:])
        many = max(1, _RUN_BYTES // row)
        for first in range(0, rows, many):
            yield _Run(tensor, first * row, min(many, rows - first) * row)


def _data(header: Header, run: _Run) -> memoryview:
    return part_of(header.shards[run.tensor.shard], run.tensor.offset + run.start, run.size)


def _fault(header: Header, tensor: Tensor) -> str:
    """What is wrong with a tensor, by a second look."""
    search = Search(tensor)
    for run in _runs(header):
        if run.tensor is tensor:
            search.look(_data(header, run))
    return search.result() or f"ggml refuses the data of {tensor.name}, of type {tensor.type}"
