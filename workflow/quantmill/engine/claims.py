"""Devices for one process each, where several jobs run at once: `offload: {gpus: 1}`.

Snakemake counts GPUs and names none. So a job takes the first that no other process of this machine has: it
locks a file of the device's name until it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final, Protocol, TypeVar

from quantmill.errors import QuantmillError

_EVERY_SECONDS: Final = 0.5

_held: dict[str, IO[bytes]] = {}


class Named(Protocol):
    """A device: its name and description tell it from others."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...


DeviceT = TypeVar("DeviceT", bound=Named)


def claim(devices: Sequence[DeviceT], count: int) -> list[DeviceT]:
    """`count` of the devices, for this process alone until it ends; it waits for those that others have.

    QuantmillError where there are fewer.
    """
    if count > len(devices):
        what = f"gpus is {count}, and there are {len(devices)} devices"
        raise QuantmillError(what, "offload", "lower it, or leave it out for all of them")
    while True:
        mine = [device for device in devices if _key(device) in _held]
        for device in devices:
            if len(mine) == count:
                return [one for one in devices if one in mine]
            if device not in mine and _lock(_key(device)):
                mine.append(device)
        if len(mine) == count:
            return [one for one in devices if one in mine]
        # Not all, or two that each have some would wait for each other.
        for key in [_key(device) for device in mine]:
            _held.pop(key).close()
        time.sleep(_EVERY_SECONDS)


def _lock(key: str) -> bool:
    folder = Path(tempfile.gettempdir()) / f"quantmill-devices-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    file = (folder / key).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _held[key] = file
    return True


def _key(device: Named) -> str:
    """What is visible of a machine's GPUs decides which of them CUDA0 is."""
    visible = [os.environ.get(f"{kind}_VISIBLE_DEVICES", "") for kind in ("CUDA", "HIP", "GGML_VK")]
    text = "\n".join([device.name, device.description, *visible])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
