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
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from quantmill import spec
from quantmill.errors import QuantmillError
from quantmill.files import part_of, write_atomically, writing
from quantmill.packs import PLACE, Packs, Place
from quantmill.progress import Log

Identity = dict[str, str | int | bool]
"""What determines a stage's units besides their own input: digests of the engine and of the model, mostly."""

_MAGIC: Final = b"quantmill-unit-1"
_HEAD: Final = len(_MAGIC) + 32
_TRIM_TO: Final = 0.9

Payload = bytes | memoryview


class Unit(NamedTuple):
    """A unit of work. `placed`: the store has it in a file of the results, where it takes no room."""

    key: str
    payload: Payload
    sha256: bytes
    placed: bool = False


class _Entry(NamedTuple):
    """What the cap is about: a unit by its path, or a pack by its name. The least of them goes first."""

    used: int
    bytes: int
    path: str
    pack: str = ""


class Store:
    """Units of work under `folder`, at most `max_bytes` of them.

    `made` and `reused` count the units of this process; `log` (default: stderr)
    is warned, once, where units cannot be kept.
    """

    def __init__(self, folder: Path, max_bytes: int = 50 << 30, log: Log | None = None) -> None:
        self.folder = folder
        self.units = folder / "units"
        self.packs = Packs(folder / "packs")
        self.max_bytes = max_bytes
        self.made = self.reused = 0
        self._log = log or Log()
        self._warned = False
        self._written = 0
        self._reserved = 0
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
        unit = self.find(key)
        return None if unit is None else memoryview(unit.payload)

    def find(self, key: str) -> Unit | None:
        """As `get`, with what is known of the payload."""
        path = self._path(key)
        try:
            data = part_of(path)
        except OSError:
            return None
        place = Place.parse(data)
        unit = self._whole(key, data) if place is None else self._placed(key, place)
        with suppress(OSError):  # another user's
            os.utime(path) if unit is not None else path.unlink()
        return unit

    def _whole(self, key: str, data: memoryview) -> Unit | None:
        payload = data[_HEAD:]
        sha256 = hashlib.sha256(payload).digest()
        return Unit(key, payload, sha256) if data[:_HEAD] == _MAGIC + sha256 else None

    def _placed(self, key: str, place: Place) -> Unit | None:
        """The unit at a place; None where the pack is gone, or the file was changed by its user."""
        try:
            payload = self.packs.read(place)
        except (OSError, QuantmillError):
            return None
        if hashlib.sha256(payload).digest() != place.sha256:
            return None
        self.packs.use(place.pack)
        return Unit(key, payload, place.sha256, self.packs.shared(place.pack))

    def put(self, key: str, payload: Payload) -> None:
        """Keep a payload under its key, where the store can be written."""
        self._put(Unit(key, payload, hashlib.sha256(payload).digest()))

    def _put(self, unit: Unit) -> None:
        size = _HEAD + len(unit.payload)
        if self._reserved and shutil.disk_usage(self.folder).free < self._reserved + size:
            self._warn("the disk has room for the output alone")
            return
        try:
            with writing(self._path(unit.key), durable=False) as file:
                file.write(_MAGIC + unit.sha256)
                file.write(unit.payload)
        except QuantmillError as error:
            self._warn(getattr(error.__cause__, "strerror", None) or str(error))
            return
        with self._lock:
            self._written += size
            if self._written >= self.max_bytes // 100:
                self._trim()

    def get_or_make(self, key: str, make: Callable[[], Payload]) -> Payload:
        """The unit's payload; if the store lacks it, make and store it. Safe in several threads."""
        return self.find_or_make(key, make).payload

    def find_or_make(self, key: str, make: Callable[[], Payload], *, keep: bool = True) -> Unit:
        """As `get_or_make`, with what is known of the payload.

        What is made is not stored without `keep`: it comes into a file, which is a `pack`.
        """
        unit = self.find(key)
        if unit is not None:
            with self._lock:
                self.reused += 1
            return unit
        payload = make()
        unit = Unit(key, payload, hashlib.sha256(payload).digest())
        if keep:
            self._put(unit)
        with self._lock:
            self.made += 1
        return unit

    @contextmanager
    def reserving(self, folder: Path, size: int) -> Iterator[Callable[[int], None]]:
        """Leave `size` bytes of the disk to a file that is written in `folder`, if the store is on it too.

        No unit is kept that would take them. The function is told what was written of the file.
        """
        left = 0
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            left = size if folder.stat().st_dev == self.folder.stat().st_dev else 0

        def written(size: int) -> None:
            nonlocal left
            with self._lock:
                size = min(left, size)
                left -= size
                self._reserved -= size

        with self._lock:
            self._reserved += left
        try:
            yield written
        finally:
            written(left)

    @contextmanager
    def pack(self, file: Path) -> Iterator[Callable[[Unit, int], None]]:
        """Have `file`, which is being written, hold units for the store.

        The function records that a unit stands in it from an offset: call it when its
        bytes are there and flushed. What was recorded stays, however the block ends.
        """
        pack = ""

        def record(unit: Unit, offset: int) -> None:
            nonlocal pack
            if unit.placed:
                return
            try:
                pack = pack or self.packs.add(file)
                place = Place(unit.sha256, pack, offset, len(unit.payload))
                write_atomically(self._path(unit.key), place.to_bytes(), durable=False)
            except (OSError, QuantmillError) as error:
                self._warn(getattr(error.__cause__ or error, "strerror", None) or str(error))

        try:
            yield record
        finally:
            with self._lock:
                self._trim()

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
        process writes, and after each file; each process may run over by that much.
        """
        self._written = 0
        units, places = self._entries()
        packs = [_Entry(pack.used, pack.bytes, "", pack.pack) for pack in self.packs.held()]
        total = sum(entry.bytes for entry in (*units, *places, *packs))
        if total <= self.max_bytes:
            return
        referred = self._referred(places, {entry.pack for entry in packs})
        packs = [
            entry if entry.pack in referred else entry._replace(used=0) for entry in packs if entry.bytes
        ]
        for entry in sorted([*units, *packs]):
            if total <= self.max_bytes * _TRIM_TO:
                break
            if self._evict(entry):
                total -= entry.bytes

    def _evict(self, entry: _Entry) -> bool:
        """Delete a unit or a pack; False where it is another user's: it stays."""
        if entry.pack:
            return self.packs.remove(entry.pack)
        try:
            os.unlink(entry.path)
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    def _referred(self, places: list[_Entry], packs: set[str]) -> set[str]:
        """The packs that units are in; places in others are removed."""
        referred = set()
        for entry in places:
            with suppress(OSError):  # gone, or another user's
                place = Place.parse(Path(entry.path).read_bytes())
                if place is None or place.pack in packs:
                    referred.add(place.pack if place else "")
                else:
                    os.unlink(entry.path)
        return referred

    def _entries(self) -> tuple[list[_Entry], list[_Entry]]:
        """The units, and what has the size of a place; temporary files of an hour ago are removed."""
        units: list[_Entry] = []
        places: list[_Entry] = []
        for folder in _listed(self.units):
            for entry in _listed(folder):
                with suppress(OSError):  # gone, or another user's
                    stat = entry.stat()
                    if not entry.name.startswith("."):
                        kind = places if stat.st_size == PLACE.size else units
                        kind.append(_Entry(stat.st_mtime_ns, stat.st_size, entry.path))
                    elif time.time() - stat.st_mtime > 3600:
                        os.unlink(entry.path)
        return units, places


def _listed(folder: os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where it is none, or closed to this user."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
