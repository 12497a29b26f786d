"""NVFP4's arithmetic against a slow one of its own: value by value, the nearest by distance."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import checkpoints
from quantmill.nvfp4 import values as nvfp4

DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
E4M3 = [float(x) for x in np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(float)]


def nearest(value: float, grid: list[float]) -> int:
    """The index of the nearest value; of two as near the even one."""
    return min(range(len(grid)), key=lambda i: (abs(grid[i] - value), i % 2))


def slow(matrix: np.ndarray, scale: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Codes and block scales of a matrix, a value at a time."""
    rows, columns = matrix.shape
    codes = np.zeros((rows, columns // 2), np.uint8)
    scales = np.zeros((rows, columns // 16), np.uint8)
    for row in range(rows):
        for block in range(columns // 16):
            values = matrix[row, 16 * block : 16 * block + 16].astype(np.float32)
            ideal = float(np.abs(values).max() / (np.float32(6) * scale)) or 1.0
            scales[row, block] = nearest(min(max(ideal, 2.0**-9), 448.0), E4M3)
            step = np.float32(E4M3[scales[row, block]]) * scale
            for at, value in enumerate(values):
                code = nearest(float(abs(value) / step), [0, 0.5, 1, 1.5, 2, 3, 4, 6]) | (
                    8 if value < 0 else 0
                )
                codes[row, 8 * block + at // 2] |= code << (4 * (at % 2))
    return codes, scales


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_bytes_are_those_of_the_slow_one(dtype: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvfp4, "_PIECE", 256)
    matrix = checkpoints.hard(checkpoints.values((24, 96), seed)).astype(DTYPES[dtype])
    bits = nvfp4.as_bits(matrix.view(np.uint8).reshape(-1), dtype, matrix.shape)
    with ThreadPoolExecutor(2) as pool:
        largest = nvfp4.largest(bits, dtype, pool)
        assert largest == float(np.abs(matrix.astype(np.float32)).max())
        scale = nvfp4.tensor_scale(largest)
        codes, scales = nvfp4.quantize(bits, dtype, scale, pool)
        error = nvfp4.relative_error(bits, dtype, codes, scales, scale, pool)
    assert scale == np.float32(2.0**-14)
    true_codes, true_scales = slow(matrix, scale)
    assert np.array_equal(codes, true_codes) and np.array_equal(scales, true_scales)
    values = nvfp4.dequantize(codes, scales, scale).astype(float)
    wrong = values - matrix.astype(float)
    assert error == pytest.approx(np.linalg.norm(wrong) / np.linalg.norm(matrix.astype(float)), rel=1e-5)


def test_every_code_and_scale_is_read_back_as_what_it_means() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, -1)
    scales = np.arange(1, 33, dtype=np.uint8).reshape(1, -1)
    values = nvfp4.dequantize(codes, scales, np.float32(0.5))[0]
    for at, value in enumerate(values):
        code = int(codes[0, at // 2]) >> (4 * (at % 2)) & 15
        true = [0, 0.5, 1, 1.5, 2, 3, 4, 6][code & 7] * E4M3[1 + at // 16] * 0.5 * (-1 if code & 8 else 1)
        assert value == true


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_what_is_not_finite(dtype: str) -> None:
    def bits(*values: float) -> nvfp4.Bits:
        row = np.array([values], np.float32).astype(DTYPES[dtype])
        return nvfp4.as_bits(row.view(np.uint8).reshape(-1), dtype, row.shape)

    with ThreadPoolExecutor(1) as pool:
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            assert nvfp4.largest(bits(1, value), dtype, pool) is None
        zeros = bits(*[0.0, -0.0] * 8)
        assert nvfp4.largest(zeros, dtype, pool) == 0 and nvfp4.tensor_scale(0) == 1
        codes, scales = nvfp4.quantize(zeros, dtype, np.float32(1), pool)
        assert not codes.any() and scales.view(ml_dtypes.float8_e4m3fn).astype(float).tolist() == [[1.0]]
        assert nvfp4.relative_error(zeros, dtype, codes, scales, np.float32(1), pool) == 0


def test_f16_is_widened_exactly() -> None:
    every = np.arange(0x7C00, dtype=np.uint16)
    assert np.array_equal(nvfp4.floats(every, "F16"), every.view(np.float16).astype(np.float32))
