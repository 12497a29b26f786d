"""Leases: which units of a store are being made, so that no two processes make the same one.

A lease is a file `leases/<key>` that its owner makes exclusively, touches every few seconds and
removes when the unit is there. One that has not been touched for a while is a dead owner's, or
that of a process on this machine that has ended: whoever finds it takes the work over. Ages are
told by the file system's own clock, so machines need not agree on the time. Making a file
exclusively and renaming it are safe on NFS, which locks are not everywhere.

Where no file can be made nothing is leased, and two processes may do the same work.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

TOUCHED_EVERY: Final = 5.0  # seconds
EXPIRES_AFTER: Final = 30.0
_LEFT_AFTER: Final = 3600.0
_LOOKS_EVERY: Final = 0.5
_PATIENCE: Final = 10.0
"""Seconds for which an owner of leases waits for another: both may need what the other has."""


class Leases:
    """The leases of a store in `folder`. Safe in threads."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder
        self._say = say
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None

    def acquire(self, key: str, find: Callable[[], T | None]) -> T | None:
        """The result, if another process makes it: it is waited for while that one lives. None where it is
        this process's to make; `release` is then to be called.

        `find` looks for the result.
        """
        waited = False
        began = time.monotonic()
        while not self._make(key):
            if (found := find()) is not None:
                return found
            with self._lock:
                busy = bool(self._held)
            if busy and time.monotonic() - began > _PATIENCE:
                return None
            if not waited:
                self._say(f"waiting for a unit that {self._owner(key)} makes")
                waited = True
            self._remove_if_dead(key)
            time.sleep(_LOOKS_EVERY)
        # It may have been made between the look and the lease.
        found = find()
        if found is not None:
            self.release(key)
        return found

    @contextmanager
    def holding(self, key: str, find: Callable[[], T | None]) -> Iterator[T | None]:
        """As `acquire`; what is to be made is made in the block."""
        found = self.acquire(key, find)
        try:
            yield found
        finally:
            self.release(key)

    def release(self, key: str) -> None:
        """Give up a lease, if it is held."""
        with self._lock:
            if key not in self._held:
                return
            self._held.discard(key)
        with suppress(OSError):
            self._path(key).unlink()

    def release_all(self) -> None:
        """Give up all."""
        for key in list(self._held):
            self.release(key)

    def sweep(self) -> None:
        """Remove what killed owners have left, and nobody has needed for an hour."""
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(OSError):  # gone, or another user's
                    if time.time() - entry.stat().st_mtime > _LEFT_AFTER:
                        os.unlink(entry.path)

    def _make(self, key: str) -> bool:
        """Make a lease; False where another has it."""
        path = self._path(key)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            with self._lock:
                return key in self._held
        except OSError:  # a store that cannot be written
            return True
        with suppress(OSError):
            os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        os.close(descriptor)
        with self._lock:
            self._held.add(key)
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, daemon=True)
                self._keeper.start()
        return True

    def _keep(self) -> None:
        """Touch what is held, for as long as this process lives."""
        while True:
            time.sleep(TOUCHED_EVERY)
            with self._lock:
                held = list(self._held)
            for key in held:
                with suppress(OSError):
                    os.utime(self._path(key))

    def _remove_if_dead(self, key: str) -> None:
        path = self._path(key)
        with suppress(OSError):
            if self._now() - path.stat().st_mtime < EXPIRES_AFTER and not self._has_ended(key):
                return
            # Of several that find it dead one succeeds, and none removes a lease that came after it.
            taken = path.with_name(f".{secrets.token_hex(4)}")
            path.rename(taken)
            taken.unlink()

    def _now(self) -> float:
        """The time by the clock of the file system."""
        probe = self.folder / f".{os.getpid()}.{threading.get_ident()}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            with suppress(OSError):
                probe.unlink()

    def _has_ended(self, key: str) -> bool:
        """Whether the owner was a process on this machine, and is gone."""
        owner = self._read(key)
        if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
            return False
        try:
            os.kill(int(str(owner["pid"])), 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False

    def _owner(self, key: str) -> str:
        owner = self._read(key)
        return f"process {owner.get('pid', '?')} on {owner.get('host', 'another machine')}"

    def _read(self, key: str) -> dict[str, object]:
        with suppress(OSError, ValueError):
            owner = json.loads(self._path(key).read_bytes())
            if isinstance(owner, dict):
                return owner
        return {}

    def _path(self, key: str) -> Path:
        return self.folder / key
