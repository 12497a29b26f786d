"""Malformed files for the readers of what others wrote: `python tests/fuzz.py [READER ...] [--inputs N]`.

Each input leads to success or to a QuantmillError: one line. Anything else is printed with its seed: other
exceptions, over `SLOW` seconds, over a GiB of memory, a signal. `make test` runs those that `tests/faults`
keeps; this is for long runs by hand.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from quantmill.errors import QuantmillError
from readers import READERS, Reader

SLOW: Final = 2.0
_MEMORY: Final = 1 << 30


class SlowError(BaseException):
    """An input took too long."""


@contextmanager
def limited(seconds: float = SLOW) -> Iterator[None]:
    """The block may take so many seconds of the processor, and a GiB more memory than there is."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SlowError(f"over {seconds:g} s")

    before, (soft, hard) = signal.signal(signal.SIGPROF, stop), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + _MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _mapped() -> int:
    """The bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def malformed(reader: Reader, seed: int) -> bytes:
    """The input of a seed."""
    draw = random.Random(seed)
    samples = reader.samples()
    return reader.mutate(draw, samples[draw.randrange(len(samples))])


def line_of(reader: Reader, folder: Path, content: bytes) -> str | None:
    """The one line by which a file is refused; None where it is accepted. Any other exception is a fault."""
    path = folder / reader.file
    path.write_bytes(content)
    try:
        with limited():
            reader.read(path)
    except QuantmillError as error:
        line = str(error)
        assert line and "\n" not in line and line.isprintable(), repr(line)
        return line
    return None


def _run(name: str, seeds: range, at: Path) -> None:
    """Give a reader inputs; each fault is printed once for a place."""
    reader, faults, refused = READERS[name], Counter[str](), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reader.prepare(folder)
        for seed in seeds:
            at.write_text(str(seed))
            content = malformed(reader, seed)
            try:
                refused += line_of(reader, folder, content) is not None
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                frames = traceback.extract_tb(error.__traceback__)
                ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "/quantmill/" in f.filename]
                place = f"{type(error).__name__} at {' '.join(ours[-3:])}"
                faults[place] += 1
                if faults[place] == 1:
                    print(f"{name} {seed}: {place}: {str(error)[:150]!r}", flush=True)
    kinds = ", ".join(f"{count} {place}" for place, count in faults.items())
    print(
        f"{name}: {len(seeds)} inputs, {refused} refused, {sum(faults.values())} faults {kinds}", flush=True
    )


def main() -> None:
    """Run each reader in a process of its own; one that dies by a signal goes on behind that input."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("readers", nargs="*", default=list(READERS))
    arguments.add_argument("--inputs", type=int, default=1000)
    arguments.add_argument("--from", dest="first", type=int, default=0)
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "at"
        for name in args.readers:
            first, end = args.first, args.first + args.inputs
            began = time.monotonic()
            while first < end:
                if not (child := os.fork()):
                    _run(name, range(first, end), at)
                    sys.stdout.flush()
                    os._exit(0)
                _, status = os.waitpid(child, 0)
                if not status:
                    break
                print(f"{name} {at.read_text()}: ended the process: {status}", flush=True)
                first = int(at.read_text()) + 1
            print(f"  {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
