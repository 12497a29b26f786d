"""What lies on a grid is packed without loss, as gguf-py reads it; what does not is refused."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import gguf
import ml_dtypes
import numpy as np
import pytest

from quantmill.errors import QuantmillError
from quantmill.grid.fit import FP8, GRIDS
from quantmill.quantize import repack
from quantmill.quantize.kernels import task

RANDOM = np.random.default_rng(3)
SHAPE = (512, 6, 2)
TYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def on_grid(kind: str) -> np.ndarray:
    """Random values of a type [matrices, rows, columns]: of random bytes as gguf-py dequantizes them."""
    block = GRIDS[kind].block
    blocks = int(np.prod(SHAPE)) // block
    scales = RANDOM.uniform(0.01, 0.1, (blocks, 1)).astype(np.float16).astype(np.float32)
    if kind == "mxfp4":
        assert GRIDS[kind].listed is not None
        scales = np.exp2(RANDOM.integers(-9, -3, (blocks, 1)))
        values = scales * GRIDS[kind].listed[RANDOM.integers(0, 15, (blocks, block))]
    elif kind == "iq4_nl":
        assert GRIDS[kind].listed is not None
        scales *= RANDOM.choice((-1, 1), (blocks, 1))
        values = scales * GRIDS[kind].listed[RANDOM.integers(0, 16, (blocks, block))]
    elif GRIDS[kind].offset:
        levels = RANDOM.integers(0, int(GRIDS[kind].most) + 1, (blocks, block))
        levels[:, 0] = 0
        values = scales * levels - (scales * 7).astype(np.float16).astype(np.float32)
    else:
        values = scales * RANDOM.integers(GRIDS[kind].least, int(GRIDS[kind].most) + 1, (blocks, block))
    return values.astype(np.float32).reshape(SHAPE[::-1])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", [kind for kind in GRIDS if kind != FP8])
def test_no_value_changes(kind: str, dtype: str) -> None:
    source = on_grid(kind).astype(TYPES[dtype])
    with ThreadPoolExecutor(2) as pool:
        made = repack.repack(source.reshape(-1).view(np.uint8), dtype, kind, SHAPE, pool, 2)
    back = gguf.dequantize(made.reshape(12, -1), gguf.GGMLQuantizationType[kind.upper()])
    assert np.array_equal(back.reshape(SHAPE[::-1]).astype(TYPES[dtype]), source)


def test_what_is_not_on_the_grid_is_refused() -> None:
    source = RANDOM.standard_normal(SHAPE[::-1]).astype(np.float16)
    with ThreadPoolExecutor(1) as pool, pytest.raises(QuantmillError) as refused:
        repack.repack(source.reshape(-1).view(np.uint8), "f16", "q4_0", SHAPE, pool, 1)
    assert (
        str(refused.value) == "lies not on the grid of q4_0; delete manifest.tsv to have it looked at again"
    )


def test_a_value_that_the_engine_reads_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is of what ggml dequantizes: a layout that was wrong would be seen."""
    source = on_grid("q4_0").astype(np.float16)
    grid = repack.grids.GRIDS["q4_0"]
    mirrored = replace(grid, pack=lambda blocks, codes: grid.pack(blocks, codes[..., ::-1]))
    monkeypatch.setitem(repack.grids.GRIDS, "q4_0", mirrored)
    with ThreadPoolExecutor(1) as pool, pytest.raises(QuantmillError, match="is not the source's value once"):
        repack.repack(source.reshape(-1).view(np.uint8), "f16", "q4_0", SHAPE, pool, 1)


def test_a_packed_tensor_is_another_unit_of_the_store() -> None:
    rounded = task("a", "sha", "bf16", "q4_0", (32, 2), None)
    assert rounded.key("e") != replace(rounded, packed=True).key("e")
