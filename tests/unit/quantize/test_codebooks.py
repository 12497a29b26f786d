"""Entries of codebooks, and how they are packed, against ggml's own dequantizers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from quantmill.engine.ggml import Bytes, Conversion
from quantmill.quantize import codebooks
from quantmill.quantize.codebooks import BOOKS

ROWS, COLUMNS = 19, 512


def converted(data: NDArray[np.generic], source: str, target: str) -> Bytes:
    with ThreadPoolExecutor(1) as pool:
        flat, ones = data.reshape(-1).view(np.uint8), np.ones((1, COLUMNS), np.float32)
        return Conversion(pool, 1, flat, source, target, (COLUMNS, ROWS), ones).result()


def quantized(name: str, seed: int) -> Bytes:
    weights = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    return converted(weights, "f32", name)


def random_entries(name: str, seed: int) -> tuple[NDArray[np.uint16], Bytes]:
    """Entries, and signs that the type can have."""
    random, table = np.random.default_rng(seed), codebooks.table(name)
    entries = random.integers(0, len(table), (ROWS, COLUMNS // table.shape[1])).astype(np.uint16)
    signs = random.integers(0, 2, (ROWS, COLUMNS // 8, 8)).astype(np.uint8)
    if BOOKS[name].even:
        signs[..., 7] = signs[..., :7].sum(axis=-1) % 2
    return entries, np.packbits(signs, axis=-1, bitorder="little")[..., 0]


@pytest.mark.parametrize("name", sorted(BOOKS))
def test_ggml_reads_the_entries_as_they_were_written(name: str) -> None:
    data, (entries, signs) = quantized(name, 1), random_entries(name, 2)
    made = codebooks.packed(data, name, entries, signs)
    assert made.nbytes == data.nbytes
    read = converted(made, name, "f32").view(np.float32).reshape(ROWS, COLUMNS)
    table = codebooks.table(name)
    ascending = table[np.lexsort(table.T[::-1])]  # as the kernel numbers them
    negative = np.unpackbits(signs, axis=1, bitorder="little")
    steps = codebooks.steps(data, name, ROWS).T.repeat(BOOKS[name].group, axis=1)
    magnitudes = ascending[entries].reshape(ROWS, COLUMNS)
    np.testing.assert_array_equal(read, steps * magnitudes * np.where(negative, -1, 1).astype(np.float32))


@pytest.mark.parametrize("name", sorted(BOOKS))
def test_what_is_no_entry_stays(name: str) -> None:
    """The scales are ggml's: whatever the entries, the same bytes hold them."""
    data = quantized(name, 3)
    expected = codebooks.steps(data, name, ROWS)
    for seed in (4, 5):
        made = codebooks.packed(data, name, *random_entries(name, seed))
        np.testing.assert_array_equal(codebooks.steps(made, name, ROWS), expected)
    assert (expected > 0).all()


@pytest.mark.parametrize("name", sorted(BOOKS))
def test_the_smallest_entry_has_the_smallest_magnitudes(name: str) -> None:
    """The kernel asks it what it costs to flip a sign."""
    table = codebooks.table(name)
    assert (table[np.lexsort(table.T[::-1])][0] == table.min()).all()
