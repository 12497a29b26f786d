"""What a server takes of NVIDIA GPUs while it works: power, temperature, memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import fmean
from types import TracebackType
from typing import Any, Self

from quantmill.formats.measurements import Gpu

_EVERY_SECONDS = 0.25
_USED_BYTES = 64 << 20  # a device whose memory grows by less is not used


class Watch:
    """The GPUs of this machine, from before a server starts; none where there is no driver for them."""

    def __init__(self) -> None:
        self._devices: list[Any] = []
        self._before: list[int] = []
        self._samples: list[list[tuple[float, int, int]]] = []

    def __enter__(self) -> Self:
        import pynvml

        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self._devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            self._before = [int(pynvml.nvmlDeviceGetMemoryInfo(device).used) for device in self._devices]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import pynvml

        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Take samples while the block runs."""
        done = threading.Event()

        def sample() -> None:
            while not done.wait(_EVERY_SECONDS):
                self.look()

        thread = threading.Thread(target=sample, daemon=True)
        if self._devices:
            thread.start()
        try:
            yield
        finally:
            done.set()
            if self._devices:
                thread.join()
                self.look()

    def look(self) -> None:
        """Take one sample of every device: watts, degrees Celsius, bytes."""
        import pynvml

        with suppress(pynvml.NVMLError):
            self._samples.append(
                [
                    (
                        pynvml.nvmlDeviceGetPowerUsage(device) / 1000,
                        int(pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU)),
                        int(pynvml.nvmlDeviceGetMemoryInfo(device).used),
                    )
                    for device in self._devices
                ]
            )

    def report(self) -> Gpu | None:
        """The devices whose memory the server took: their names, mean power and most memory (sums over
        them), highest temperature; None where it took none.
        """
        import pynvml

        readings = []
        for number, device in enumerate(self._devices):
            taken = max((sample[number][2] for sample in self._samples), default=0) - self._before[number]
            if taken >= _USED_BYTES:
                readings.append(
                    (
                        str(pynvml.nvmlDeviceGetName(device)),
                        fmean(sample[number][0] for sample in self._samples),
                        max(sample[number][1] for sample in self._samples),
                        taken,
                    )
                )
        if not readings:
            return None
        names, power, temperature, memory = zip(*readings, strict=True)
        return {
            "name": ", ".join(names),
            "power_w": sum(power),
            "temperature_c": max(temperature),
            "memory_bytes": sum(memory),
        }
