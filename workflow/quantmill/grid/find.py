"""Which tensors of a model lie on a grid: a few blocks of each are looked at, and all where these fit."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.files import part_of
from quantmill.formats.ggufio import Header, Tensor
from quantmill.grid.fit import GRIDS, Grid, fits, may_fit
from quantmill.grid.rounding import WIDTHS, Bits, as_bits

_FIRST: Final = 4  # blocks of the quick test
_SAMPLE: Final = 64
_RUN: Final = 1 << 14  # blocks of a thread at a time


def grids(header: Header, threads: int) -> dict[str, str]:
    """The grid of each matrix of floats that lies on one, by name."""
    found = {}
    with ThreadPoolExecutor(threads) as pool:
        for tensor in header.tensors:
            if tensor.type not in WIDTHS or len(tensor.shape) < 2:
                continue
            data = np.frombuffer(part_of(header.shards[tensor.shard], tensor.offset, tensor.bytes), np.uint8)
            if kind := grid_of(tensor, data, pool):
                found[tensor.name] = kind
    return found


def grid_of(tensor: Tensor, data: NDArray[np.uint8], pool: Executor) -> str | None:
    """The first grid on which all blocks of a tensor lie; None for one of zeros, and of no grid's rows."""
    bits = as_bits(data, tensor.type)
    for grid in GRIDS.values():
        if tensor.shape[0] % grid.block == 0 and _lies_on(
            bits.reshape(-1, grid.block), tensor.type, grid, pool
        ):
            return grid.name
    return None


def _lies_on(blocks: Bits, dtype: str, grid: Grid, pool: Executor) -> bool:
    sample = blocks[np.unique(np.linspace(0, len(blocks) - 1, _SAMPLE).astype(np.int64))]
    sample = sample[(sample << 1).any(axis=1)]  # a zero of either sign has no other bit
    if not len(sample) or not may_fit(sample[:_FIRST], dtype, grid) or not fits(sample, dtype, grid):
        return False
    return _all(blocks, dtype, grid, pool)


def _all(blocks: Bits, dtype: str, grid: Grid, pool: Executor) -> bool:
    """Whether all blocks lie on it; what is not begun at the first run that does not is left."""
    runs = [
        pool.submit(fits, blocks[start : start + _RUN], dtype, grid) for start in range(0, len(blocks), _RUN)
    ]
    try:
        return all(run.result() for run in runs)
    finally:
        for run in runs:
            run.cancel()
