"""The devices that memory is compared with: sizes, what stays free, the caches that are tried."""

from __future__ import annotations

from typing import Final

from quantmill.text import GIB

DEVICES: Final = (8, 12, 16, 24, 32, 48)
"""Memory of devices that people have, in GB as they are sold. 1 GB as sold is 1 GiB."""

RESERVE: Final = GIB
"""Bytes of a device that stay free for whatever else uses it."""

CACHES: Final = ("f16", "q8_0", "q4_0")
"""Types of the context's cache, in the order in which they are tried."""
