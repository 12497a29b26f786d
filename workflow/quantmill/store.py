"""The content-addressed store: every costly unit of work, computed once.

A unit is bytes under a key, the digest of everything that determines them. Its
file is `units/a/abcdef...`: a magic, the sha256 of the payload, the payload.
Writers rename whole files into place, so two processes that make the same unit
do no harm; a reader checks the payload's digest, so a damaged unit (a torn
write, a bad disk) counts as missing and is made again. Units are not fsynced:
what a crash tears is detected. A unit's mtime is the time of its last use.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantmill import spec
from quantmill.errors import QuantmillError
from quantmill.files import writing

_MAGIC = b"quantmill-unit-1"
_HEAD = len(_MAGIC) + 32
_TRIM_TO = 0.9


class Store:
    """Units of work under `folder`, at most `max_bytes` of them.

    `made` and `reused` count the units of this process.
    """

    def __init__(self, folder: Path, max_bytes: int = 50 << 30) -> None:
        self.folder = folder
        self.units = folder / "units"
        self.max_bytes = max_bytes
        self.made = self.reused = 0
        self._written = 0
        self._lock = threading.Lock()

    @staticmethod
    def key(kind: str, version: int, **determined_by: Any) -> str:
        """The key of a unit: the digest of its kind, version and whatever determines it."""
        return spec.digest({"kind": kind, "version": version, "by": determined_by})

    def get(self, key: str) -> memoryview | None:
        """The unit's payload, mapped and not copied; None where it is missing or damaged.

        It stays whole while it is held, whatever becomes of the unit's file.
        """
        path = self._path(key)
        try:
            with path.open("rb") as file, suppress(ValueError):  # an empty file cannot be mapped
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                payload = data[_HEAD:]
                if data[:_HEAD] == _MAGIC + hashlib.sha256(payload).digest():
                    os.utime(path)
                    return payload
        except FileNotFoundError:
            return None
        except OSError as error:
            raise QuantmillError(f"cannot be read ({error.strerror})", path) from error
        with suppress(FileNotFoundError):
            path.unlink()
        return None

    def put(self, key: str, payload: bytes | memoryview) -> None:
        """Keep a payload under its key."""
        path = self._path(key)
        with writing(path, durable=False) as file:
            file.write(_MAGIC + hashlib.sha256(payload).digest())
            file.write(payload)
        with self._lock:
            self._written += _HEAD + len(payload)
            self._trim()

    def get_or_make(self, key: str, make: Callable[[], bytes | memoryview]) -> bytes | memoryview:
        """The unit's payload, made and kept if the store lacks it; safe in several threads."""
        found = self.get(key)
        if found is not None:
            with self._lock:
                self.reused += 1
            return found
        payload = make()
        self.put(key, payload)
        with self._lock:
            self.made += 1
        return payload

    def _path(self, key: str) -> Path:
        return self.units / key[0] / key

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
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size
        self._written = 0

    def _entries(self) -> list[tuple[int, int, str]]:
        """(last use, bytes, path) of every unit; temporary files of an hour ago are removed."""
        found = []
        for folder in self.units.iterdir() if self.units.exists() else ():
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        stat = entry.stat()
                        if not entry.name.startswith("."):
                            found.append((stat.st_mtime_ns, stat.st_size, entry.path))
                        elif time.time() - stat.st_mtime > 3600:
                            os.unlink(entry.path)
        return found
