"""Blocks on a grid: found for every type that has one, with exactly the source's values; others are not."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantmill.grid.fit import FP8, GRIDS, fit, fits, may_fit
from quantmill.grid.rounding import rounded, values_of

RANDOM = np.random.default_rng(7)
TYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def bits_of(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as a float type holds them, its bits."""
    stored = values.astype(np.float32).astype(TYPES[dtype])
    return stored.view(np.uint32 if dtype == "f32" else np.uint16)


def made(kind: str, count: int = 400) -> np.ndarray:
    """Values of blocks of a type, as its scales and codes give them."""
    grid, shape = GRIDS[kind], (count, GRIDS[kind].block)
    scales = RANDOM.lognormal(-4, 1, (count, 1)).astype(np.float16).astype(np.float32)
    if kind == FP8:
        levels = (RANDOM.standard_normal(shape) * 60).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        return levels * RANDOM.lognormal(-4, 1, (count, 1)).astype(np.float32)
    if kind == "mxfp4":
        assert grid.listed is not None
        levels = grid.listed[RANDOM.integers(0, 15, shape)]
        return np.exp2(RANDOM.integers(-12, -3, (count, 1))) * levels
    levels = np.clip(np.rint(RANDOM.standard_normal(shape) * grid.most / 3), grid.least, grid.most)
    if kind == "iq4_nl":
        assert grid.listed is not None
        return scales * RANDOM.choice((-1, 1), (count, 1)) * grid.listed[RANDOM.integers(0, 16, shape)]
    if grid.offset:  # its minimum is a value of each block
        levels = RANDOM.integers(0, int(grid.most) + 1, shape)
        levels[:, 5] = 0
        return scales * levels - (scales * RANDOM.uniform(5, 10, (count, 1))).astype(np.float16).astype("f4")
    return scales * levels.astype(np.float32)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", GRIDS)
def test_what_a_type_can_hold_is_found(kind: str, dtype: str) -> None:
    bits = bits_of(made(kind), dtype)
    found = fit(bits, dtype, GRIDS[kind])
    assert found.fits.all() and may_fit(bits[:4], dtype, GRIDS[kind])
    computed = found.scales[:, None] * found.levels + found.minima[:, None]
    back = rounded(computed.astype(np.float32), dtype)
    assert np.array_equal(back, values_of(bits, dtype).values.astype(np.float32))
    if kind not in ("mxfp4", FP8):  # the scale is one that the type can store
        assert np.array_equal(found.scales, found.scales.astype(np.float16).astype(np.float64))
    if kind != FP8:
        codes = GRIDS[kind].codes(found.levels)
        assert codes.max() < GRIDS[kind].size


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", GRIDS)
def test_ordinary_values_are_on_no_grid(kind: str, dtype: str) -> None:
    bits = bits_of(RANDOM.standard_normal((100, GRIDS[kind].block)) * 0.02, dtype)
    assert not fit(bits, dtype, GRIDS[kind]).fits.any()
    assert not may_fit(bits[:4], dtype, GRIDS[kind])


@pytest.mark.parametrize("kind", [kind for kind in GRIDS if kind != FP8])
def test_one_value_beside_it_is_not_on_the_grid(kind: str) -> None:
    bits = bits_of(made(kind, 50), "bf16")
    assert fits(bits, "bf16", GRIDS[kind])
    bits[17, 3] = np.bitwise_xor(bits[17, 3], 0x55)
    found = fit(bits, "bf16", GRIDS[kind]).fits
    assert np.flatnonzero(~found).tolist() == [17]


def test_it_is_whether_any_scale_and_codes_give_the_values() -> None:
    """Against all scales of q4_0, on blocks of few values, many of which lie on the grid by chance."""
    scales = np.arange(0x2C00, 0x3400, dtype=np.uint16).view(np.float16).astype(np.float32)  # 1/16 to 1/4
    magnitudes = RANDOM.uniform(0.3, 0.5, 40)
    values = magnitudes[:, None] * RANDOM.integers(-8, 8, (40, 32)).clip(-3, 3) / 3
    values[:, 4:] = 0
    values[20:, 3] *= 1.02
    bits = bits_of(values, "bf16")
    stored = values_of(bits, "bf16").values.astype(np.float32)
    signed = np.concatenate([scales, -scales])[:, None, None]
    levels = np.arange(-8, 8, dtype=np.float32)[:, None]
    there = []
    for block in stored:
        same = rounded((signed * levels).astype(np.float32), "bf16") == block  # [scales, levels, 32]
        there.append(bool(same.any(axis=1).all(axis=1).any()))
    found = fit(bits, "bf16", GRIDS["q4_0"]).fits
    # The scales above are those near these values; the grid has smaller ones too.
    assert found.tolist() == there and 0 < sum(there) < 40


def test_ties_go_to_even_values() -> None:
    """8 x 1.0048828125 (f16) lies halfway between two values of bf16, and is the lower, even one."""
    scale = np.float32(1.00390625)
    values = np.zeros((1, 32), np.float32)
    values[0, :3] = scale * np.array([-8, 1, 3], np.float32)
    bits = bits_of(values, "bf16")
    assert fits(bits, "bf16", GRIDS["q4_0"])


def test_zeros_of_either_sign_and_blocks_of_zeros() -> None:
    bits = bits_of(made("q4_0", 4), "bf16")
    bits[0], bits[1, 0] = 0, 0
    bits[2, 0] = 0x8000
    found = fit(bits, "bf16", GRIDS["q4_0"])
    assert found.fits.all() and found.scales[0] == 0 and found.levels[2, 0] == 0


def test_all_255_levels_of_q8_0_are_told_apart_in_bf16() -> None:
    levels = np.concatenate([np.arange(-127, 128), [0]]).reshape(8, 32)[:, None]
    scales = np.linspace(0.01, 0.02, 200).astype(np.float16).astype(np.float32)[:, None]
    values = (levels * scales).reshape(-1, 32)
    assert fits(bits_of(values, "bf16"), "bf16", GRIDS["q8_0"])


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_rounded_to_a_value(dtype: str) -> None:
    """The ends are those between which numpy rounds to the same value."""
    bits = bits_of(RANDOM.standard_normal(2000) * np.exp2(RANDOM.integers(-20, 15, 2000)), dtype)
    values, low, high = values_of(bits, dtype)
    inside = [low + (high - low) * share for share in (0.01, 0.3, 0.7, 0.99)]
    kind: Any = TYPES[dtype]
    for numbers in inside:
        back = numbers.astype(np.float32) if dtype == "f32" else numbers.astype(np.float32).astype(kind)
        same = back.astype(np.float64) == values
        assert same.all()
