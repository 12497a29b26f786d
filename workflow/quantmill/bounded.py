"""Limits of time and memory for programs that came with a file: templates and regular expressions.

A sandbox keeps them from the machine's files, and not from its processor and memory.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Final

from quantmill.errors import QuantmillError

SECONDS: Final = 20.0
"""Seconds of the processor. What is sound takes milliseconds."""

_MEMORY: Final = 1 << 30
_BITS: Final = 10_000


@contextmanager
def bounded(what: str, where: object, cure: str, seconds: float = SECONDS) -> Iterator[None]:
    """The block may take some seconds, and a GiB of memory: above, MemoryError.

    QuantmillError where it takes longer. In the main thread alone, where signals
    arrive; the limit of memory, where the system tells how much there is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise QuantmillError(f"{what} takes more than {seconds:g} s", where, cure)

    handler, limit = signal.signal(signal.SIGVTALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    try:
        if (mapped := _mapped()) is not None and limit[0] == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY, limit[1]))
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limit)


class SmallNumbers:
    """For a sandbox of Jinja: no products of thousands of digits, during which no signal arrives."""

    intercepted_binops: ClassVar[frozenset[str]] = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The product or power of two values. OverflowError where it is too large a number."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * right
            if bits > _BITS:
                raise OverflowError(f"a number of more than {_BITS:,} bits")
        return left * right if operator == "*" else left**right


def _mapped() -> int | None:
    """The bytes of address space that this process has; None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
