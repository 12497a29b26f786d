"""The content-addressed store: every costly unit of work, computed once.

A unit is bytes under a key, the digest of everything that determines them. Its
file is `units/a/abcdef...`: a magic, the sha256 of the payload, the payload.
Writers rename whole files into place, so two processes that make the same unit
do no harm; a reader checks the payload's digest, so a damaged unit (a torn
write, a bad disk) counts as missing and is made again. Units are not fsynced:
what a crash tears is detected. A unit's mtime is the time of its last use.

The files may belong to other users and the folder may be read-only: what can
be read is used, what cannot be written is not kept.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantmill import spec
from quantmill.errors import QuantmillError
from quantmill.files import part_of, writing
from quantmill.progress import Log

Identity = dict[str, str | int | bool]
"""What determines a stage's units besides their own input: digests of the engine and of the model, mostly."""

_MAGIC = b"quantmill-unit-1"
_HEAD = len(_MAGIC) + 32
_TRIM_TO = 0.9


class Store:
    """Units of work under `folder`, at most `max_bytes` of them.

    `made` and `reused` count the units of this process; `log` (default: stderr)
    is warned, once, where units cannot be kept.
    """

    def __init__(self, folder: Path, max_bytes: int = 50 << 30, log: Log | None = None) -> None:
        self.folder = folder
        self.units = folder / "units"
        self.max_bytes = max_bytes
        self.made = self.reused = 0
        self._log = log or Log()
        self._warned = False
        self._written = 0
        self._lock = threading.Lock()

    @staticmethod
    def key(kind: str, version: int, **determined_by: Any) -> str:
        """The key of a unit: the digest of its kind, its version and its inputs."""
        return spec.digest({"kind": kind, "version": version, "by": determined_by})

    def get(self, key: str) -> memoryview | None:
        """The unit's payload; None where it is missing, damaged or not to be read by this user.

        It stays whole while it is held, whatever becomes of the unit's file. A large
        one is mapped and not copied, and holds that file open: hold few of them.
        """
        path = self._path(key)
        try:
            data = part_of(path)
        except OSError:
            return None
        payload = data[_HEAD:]
        if data[:_HEAD] == _MAGIC + hashlib.sha256(payload).digest():
            with suppress(OSError):  # another user's
                os.utime(path)
            return payload
        with suppress(OSError):
            path.unlink()
        return None

    def has(self, key: str) -> bool:
        """Whether there is such a unit: cheap, and not verified."""
        return self._path(key).is_file()

    def put(self, key: str, payload: bytes | memoryview) -> None:
        """Keep a payload under its key, where the store can be written."""
        path = self._path(key)
        try:
            with writing(path, durable=False) as file:
                file.write(_MAGIC + hashlib.sha256(payload).digest())
                file.write(payload)
        except QuantmillError as error:
            self._warn(getattr(error.__cause__, "strerror", None) or str(error))
            return
        with self._lock:
            self._written += _HEAD + len(payload)
            self._trim()

    def get_or_make(self, key: str, make: Callable[[], bytes | memoryview]) -> bytes | memoryview:
        """The unit's payload; if the store lacks it, make and store it. Safe in several threads."""
        unit = self.get(key)
        if unit is not None:
            with self._lock:
                self.reused += 1
            return unit
        payload = make()
        self.put(key, payload)
        with self._lock:
            self.made += 1
        return payload

    def _path(self, key: str) -> Path:
        return self.units / key[0] / key

    def _warn(self, reason: str) -> None:
        """Warn once that units are not stored. The message names no unit, so a run repeats it only once."""
        with self._lock:
            if not self._warned:
                what = f"{self.folder}: the store cannot be written ({reason}), finished work is not kept"
                self._log.warn([f"{what}; free some space, or give `store: {{path}}` another folder"])
            self._warned = True

    def _trim(self) -> None:
        """Evict what was longest unused once the cap is passed, down to nine tenths of it.

        The folder is walked once for every hundredth of the cap that this
        process writes; each process may run over by that much.
        """
        if self._written < self.max_bytes // 100:
            return
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        if total > self.max_bytes:
            for _, size, path in entries:
                if total <= self.max_bytes * _TRIM_TO:
                    break
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
                except OSError:  # another user's: it stays
                    continue
                total -= size
        self._written = 0

    def _entries(self) -> list[tuple[int, int, str]]:
        """(last use, bytes, path) of every unit; temporary files of an hour ago are removed."""
        units = []
        for folder in _listed(self.units):
            for entry in _listed(folder):
                with suppress(OSError):  # gone, or another user's
                    stat = entry.stat()
                    if not entry.name.startswith("."):
                        units.append((stat.st_mtime_ns, stat.st_size, entry.path))
                    elif time.time() - stat.st_mtime > 3600:
                        os.unlink(entry.path)
        return units


def _listed(folder: os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where it is none, or closed to this user."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
