"""NaN and infinity in a tensor's data, which quantizers turn into zeros or noise."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantmill.formats.ggufio import Tensor
from quantmill.formats.types import known

Bytes: TypeAlias = bytes | memoryview

# A float's bytes, and the bits of infinity. Larger bits, without the sign, are NaN.
_INFINITY: Final = {
    "f64": (8, 0x7FF0 << 48),
    "f32": (4, 0x7F80 << 16),
    "f16": (2, 0x7C00),
    "bf16": (2, 0x7F80),
}
# Where a block has its f16 scales, in bytes from its start: ggml-common.h.
_F16_SCALES: Final = """
    0      q4_0 q5_0 q8_0 q1_0 q2_0 iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s iq1_s iq4_nl iq4_xs
    0,2    q4_1 q5_1 q4_K q5_K
    80,82  q2_K
    108    q3_K
    208    q6_K
    52     tq1_0
    64     tq2_0
"""
_SCALES: Final = {
    type_name: tuple(map(int, starts.split(",")))
    for starts, *type_names in map(str.split, _F16_SCALES.strip().split("\n"))
    for type_name in type_names
}


def non_finite(type_name: str, data: Bytes) -> NDArray[np.int64]:
    """Which elements of whole blocks of a type are NaN or infinite; of a quantized type which blocks are,
    by their scales. By bits alone: two maxima, unless there is one.
    """
    size = known(type_name).block_bytes
    if type_name in _INFINITY:
        return _beyond(type_name, data, 0, size)
    if type_name in _SCALES:
        places = [_beyond("f16", data, place, size) for place in _SCALES[type_name]]
        return np.unique(np.concatenate(places))
    if type_name == "mxfp4":  # an exponent, whose largest is NaN
        return np.flatnonzero(np.frombuffer(data, np.uint8)[::size] == 0xFF)
    if type_name == "iq1_m":  # an f16 whose quarters are the upper bits of four words
        words = np.frombuffer(data, "<u2").reshape(-1, size // 2)[:, -4:] >> 12
        scales = (words << np.array([0, 4, 8, 12], np.uint16)).sum(axis=1, dtype=np.uint16)
        return _beyond("f16", scales.tobytes(), 0, 2)
    return np.empty(0, np.int64)


def _beyond(kind: str, data: Bytes, place: int, step: int) -> NDArray[np.int64]:
    """Which of the floats at `place`, `place + step`, ... are NaN or infinite."""
    width, infinity = _INFINITY[kind]
    bits = np.ndarray((len(data) // step,), f"<u{width}", data, place, (step,))
    negative = infinity | 1 << (8 * width - 1)
    if not bits.size or (bits.view(f"<i{width}").max() < infinity and bits.max() < negative):
        return np.empty(0, np.int64)
    return np.flatnonzero(bits & bits.dtype.type(infinity) == infinity)


class Search:
    """Looks for NaN and infinity in a tensor, a part at a time."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.unit = known(tensor.type).block_bytes
        self._seen = self._count = 0
        self._first = -1

    def look(self, block: Bytes) -> None:
        """Look at the next bytes, whole blocks of its type."""
        places = non_finite(self._tensor.type, block)
        if places.size and self._first < 0:
            self._first = self._seen + int(places[0])
        self._count += places.size
        self._seen += len(block) // self.unit

    def result(self) -> str:
        """What there was, as the begin of a refusal; empty where all is finite."""
        if not self._count:
            return ""
        what = "values" if self._tensor.type in _INFINITY else "blocks"
        return (
            f"{self._count:,} of the {self._seen:,} {what} of {self._tensor.name} are NaN or infinite,"
            f" the first at {self._first:,}"
        )
