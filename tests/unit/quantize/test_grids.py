"""Grids and packed codes against ggml's own dequantizers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quantmill.engine.ggml import Bytes, Conversion
from quantmill.formats.types import FED_BACK, fed_back
from quantmill.quantize import grids
from quantmill.quantize.codebooks import BOOKS
from quantmill.quantize.grids import GRIDS
from quantmill.quantize.ik_grids import IK_GRIDS

ROWS, COLUMNS = 19, 512


def converted(data: Bytes, source: str, target: str) -> Bytes:
    with ThreadPoolExecutor(1) as pool:
        return Conversion(
            pool, 1, data.view(np.uint8).reshape(-1), source, target, (COLUMNS, ROWS), None
        ).result()


def test_the_types_are_those_that_may_be_asked_for() -> None:
    assert GRIDS.keys() - IK_GRIDS.keys() | BOOKS.keys() == FED_BACK == fed_back("mainline")
    assert IK_GRIDS.keys() == fed_back("ik") - FED_BACK
    assert not GRIDS.keys() & BOOKS.keys()


@pytest.mark.parametrize("name", sorted(GRIDS.keys() - IK_GRIDS.keys()))
def test_ggml_reads_the_codes_as_they_were_written(name: str) -> None:
    random = np.random.default_rng(1)
    weights = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    data, grid = converted(weights, "f32", name), GRIDS[name]
    codes = random.integers(0, grid.levels, (ROWS, COLUMNS)).astype(np.uint8)
    steps, offsets = (part.T.repeat(grid.group, axis=1) for part in grids.steps_and_offsets(data, name, ROWS))
    values = codes.astype(np.float32) if grid.values is None else grid.values[codes]
    made = grids.packed(data, name, codes)
    assert made.nbytes == data.nbytes
    read = converted(made, name, "f32").view(np.float32).reshape(ROWS, COLUMNS)
    np.testing.assert_array_equal(read, offsets + steps * values)


@pytest.mark.parametrize("name", sorted(GRIDS.keys() - IK_GRIDS.keys()))
def test_what_is_no_code_stays(name: str) -> None:
    """The scales are ggml's: whatever the codes, the same bytes hold them."""
    weights = np.random.default_rng(2).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    data = converted(weights, "f32", name)
    least, most = (
        grids.packed(data, name, np.full((ROWS, COLUMNS), code, np.uint8))
        for code in (0, GRIDS[name].levels - 1)
    )
    for one, other in zip(
        *(grids.steps_and_offsets(part, name, ROWS) for part in (least, most)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
