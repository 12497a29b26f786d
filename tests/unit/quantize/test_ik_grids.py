"""The grids of ik_llama.cpp's own types against its library; and of those that it shares with llama.cpp."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import ik
from quantmill.engine.ggml import Conversion
from quantmill.formats.types import FED_BACK, fed_back
from quantmill.quantize import grids
from quantmill.quantize.grids import GRIDS
from quantmill.quantize.ik_grids import IK_GRIDS

pytestmark = ik.NEEDED

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
ROWS, COLUMNS = 19, 512
SHAPE = (COLUMNS, ROWS)
TYPES = sorted(IK_GRIDS)


class Made(NamedTuple):
    """By type: what ik quantized, how it reads that, any codes written into it, and how it reads these."""

    data: dict[str, Bytes]
    values: dict[str, Floats]
    codes: dict[str, Bytes]
    values_of_codes: dict[str, Floats]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, random = tmp_path_factory.mktemp("ik"), np.random.default_rng(1)
    originals = random.standard_normal((ROWS, COLUMNS)) * random.lognormal(0, 1, (ROWS, 1))
    jobs = {name: (originals.astype(np.float32), "f32", name) for name in TYPES}
    data = ik.converted(folder, jobs, SHAPE)
    codes = {name: random.integers(0, IK_GRIDS[name].levels, (ROWS, COLUMNS), np.uint8) for name in TYPES}
    written = {name: grids.packed(data[name], name, codes[name]) for name in TYPES}
    values, of_codes = (
        {
            name: array.view(np.float32).reshape(ROWS, COLUMNS)
            for name, array in ik.converted(
                folder, {name: (part[name], name, "f32") for name in TYPES}, SHAPE
            ).items()
        }
        for part in (data, written)
    )
    return Made(data, values, codes, of_codes)


def grid_of(name: str, data: Bytes) -> tuple[Floats, Floats, Floats]:
    """Steps and offsets [rows, columns], and the values of codes [levels]."""
    grid = GRIDS[name]
    steps, offsets = (part.T.repeat(grid.group, axis=1) for part in grids.steps_and_offsets(data, name, ROWS))
    return steps, offsets, np.arange(grid.levels, dtype=np.float32) if grid.values is None else grid.values


def tolerance(name: str, steps: Floats) -> Floats:
    """Two roundings of f32; ik reads iq6_k by a polynomial that is half a unit beside its table at most."""
    return np.abs(steps) * np.float32(0.51 if name == "iq6_k" else 4e-5)


@pytest.mark.parametrize("name", TYPES)
def test_ik_reads_the_codes_as_they_were_written(name: str, made: Made) -> None:
    steps, offsets, values = grid_of(name, made.data[name])
    expected = offsets + steps * values[made.codes[name]]
    assert (np.abs(made.values_of_codes[name] - expected) <= tolerance(name, steps)).all()


@pytest.mark.parametrize("name", TYPES)
def test_what_ik_quantized_is_on_the_grid_and_its_codes_give_its_bytes(name: str, made: Made) -> None:
    steps, offsets, values = grid_of(name, made.data[name])
    away = np.abs(made.values[name][..., None] - (offsets[..., None] + steps[..., None] * values))
    assert (away.min(axis=-1) <= tolerance(name, steps)).all()
    codes = away.argmin(axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(grids.packed(made.data[name], name, codes), made.data[name])
    assert (steps < 0).any() and (steps > 0).any()
    assert name == "q6_0" or {0.0} < set(np.unique(np.round(offsets / steps, 3)))  # either table


def test_products_have_the_values_of_the_table(tmp_path: Path, made: Made) -> None:
    """So of iq6_k too, which is read by something else."""
    rows = {name: np.split(made.data[name], ROWS)[0] for name in ("iq5_k", "iq6_k")}
    products = ik.multiplied(tmp_path, rows, COLUMNS)
    for name, row in products.items():
        steps, offsets, values = grid_of(name, made.data[name])
        away = np.abs(row[:, None] - (offsets[0][:, None] + steps[0][:, None] * values)).min(axis=-1)
        assert (away <= 4e-5 * np.abs(steps[0])).all()


@pytest.mark.parametrize("name", TYPES)
def test_what_is_no_code_stays(name: str, made: Made) -> None:
    least, most = (
        grids.packed(made.data[name], name, np.full((ROWS, COLUMNS), code, np.uint8))
        for code in (0, IK_GRIDS[name].levels - 1)
    )
    assert not np.array_equal(least, most)
    for one, other in zip(
        *(grids.steps_and_offsets(part, name, ROWS) for part in (least, most)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def by_llama_cpp(data: NDArray[np.generic], before: str, after: str) -> Bytes:
    importance = np.ones((1, COLUMNS), np.float32)
    with ThreadPoolExecutor(1) as pool:
        flat = data.reshape(-1).view(np.uint8)
        return Conversion(pool, 1, flat, before, after, SHAPE, importance).result()


def test_shared_types_have_the_same_layout(tmp_path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    shared = sorted(FED_BACK & fed_back("ik"))
    data = {name: by_llama_cpp(values, "f32", name) for name in shared if not name.startswith("iq2")}
    read = ik.converted(tmp_path, {name: (data[name], name, "f32") for name in data}, SHAPE)
    for name in data:
        np.testing.assert_array_equal(read[name], by_llama_cpp(data[name], name, "f32"))


# ik's tables for the iq2 of llama.cpp take it seconds to make: those were tried once.
QUICK = sorted(name for name in fed_back("ik") if name not in ("iq2_xxs", "iq2_xs", "iq2_s"))


class Rounded(NamedTuple):
    """Weights, the inputs that they are rounded for and others; by type, rounded to nearest and by gptq."""

    weights: Floats
    texts: tuple[Floats, Floats]
    by_type: dict[str, tuple[Floats, Floats]]


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Rounded:
    random = np.random.default_rng(0)
    few = random.standard_normal((2000, 64)) @ random.standard_normal((64, COLUMNS))
    sizes = np.exp(random.standard_normal(COLUMNS))
    inputs = ((few + 4 * random.standard_normal((2000, COLUMNS))) * sizes).astype(np.float32)
    weights = random.standard_normal((70, COLUMNS)).astype(np.float32)
    by_type = ik.rounded(tmp_path_factory.mktemp("ik"), QUICK, weights, inputs[:1000])
    return Rounded(weights, (inputs[:1000], inputs[1000:]), by_type)


@pytest.mark.parametrize("name", QUICK)
def test_the_outputs_change_less_on_other_inputs_too(name: str, rounded: Rounded) -> None:
    for text in rounded.texts:
        nearest, fed_back = (
            float((((made - rounded.weights) @ text.T) ** 2).sum()) for made in rounded.by_type[name]
        )
        assert fed_back < 0.8 * nearest
