"""Temporary files and folders of writers, `.NAME.XXXXXXXX.part`, and the removal of those of dead ones.

A writer holds a lock (flock) on its part for as long as it lives, so that one which can
be locked is nobody's. Between making a part and locking it a writer may take a moment:
a young one is left alone. So is everything where the file system knows no locks.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

YOUNG: Final = 60.0
"""Seconds since its last change for which a part is left alone."""

_PART: Final = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)


def new(path: Path) -> Path:
    """A new name for what is to become `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def hold(descriptor: int) -> None:
    """Lock an open part until it is closed, where the file system can: its writer lives."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """The same for a folder, while the block runs."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        hold(descriptor)
        yield
    finally:
        os.close(descriptor)


def is_held(part: Path) -> bool:
    """Whether its writer lives, as far as the file system knows: the clock alone may have leapt."""
    try:
        descriptor = os.open(part, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def sweep(path: Path) -> None:
    """Remove what dead writers of `path` have left beside it."""
    for part in _parts(path.parent, path.name):
        _remove_if_dead(part)


def sweep_below(folder: Path) -> None:
    """Remove what dead writers have left anywhere below a folder, but for hidden folders, such as a store."""
    for part in _parts(folder):
        _remove_if_dead(part)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                sweep_below(Path(entry))


def _parts(folder: Path, name: str | None = None) -> list[Path]:
    """The parts in a folder: of all names, or of one."""
    try:
        with os.scandir(folder) as entries:
            named = [(Path(entry), _PART.fullmatch(entry.name)) for entry in entries]
            return [path for path, match in named if match and name in (None, match[1])]
    except OSError:
        return []


def _remove_if_dead(part: Path) -> None:
    with suppress(OSError):  # young, gone, locked, another user's, or without locks: it stays
        if time.time() - part.stat().st_mtime < YOUNG:
            return
        is_folder = part.is_dir()
        # Over NFS only what is open for writing can be locked; a folder never is.
        descriptor = os.open(part, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_folder:
                shutil.rmtree(part)
            else:
                part.unlink()
        finally:
            os.close(descriptor)
