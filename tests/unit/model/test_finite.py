"""NaN and infinity in the data of every type."""

import numpy as np
import pytest

from quantmill.engine import ggml
from quantmill.formats import types
from quantmill.model import finite


@pytest.mark.parametrize(("name", "infinity"), [("f32", 0x7F800000), ("f16", 0x7C00), ("bf16", 0x7F80)])
def test_whatever_is_no_finite_float_is_found(name: str, infinity: int) -> None:
    width = {"f32": 4}.get(name, 2)
    values = np.zeros(1000, f"<u{width}")
    sign = 1 << (8 * width - 1)
    values[::2], values[1::2] = infinity - 1, sign | (infinity - 1)  # the largest of either sign
    assert not finite.non_finite(name, values.tobytes()).size
    for place, bits in ((3, infinity), (500, sign | infinity), (999, infinity + 1)):
        values[place] = bits
    assert finite.non_finite(name, values.tobytes()).tolist() == [3, 500, 999]


@pytest.mark.parametrize("name", sorted(set(types.WRITABLE) - {"f32", "f16", "bf16", "nvfp4"}))
def test_of_each_quantized_type_ggml_itself_finds_the_same(name: str) -> None:
    """The middle one of three blocks with any two bytes, then all, of an infinite f16 or of ones."""
    kind, size = types.TYPES[name], types.TYPES[name].block_bytes
    changes = [
        (place, bits * count)
        for bits in (b"\x00\x7c", b"\xff\xff")
        for place, count in [*((place, 1) for place in range(size - 1)), (0, size // 2)]
    ]
    refused = 0
    for place, change in changes:
        data = bytearray(3 * size)
        data[size + place : size + place + len(change)] = change
        sound = ggml._lib().ggml_validate_row_data(kind.id, bytes(data), len(data))
        assert finite.non_finite(name, bytes(data)).tolist() == ([] if sound else [1]), (place, change)
        refused += not sound
    assert refused
