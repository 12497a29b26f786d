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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from quantmill import parts, spec, text
from quantmill.errors import QuantmillError
from quantmill.files import part_of, writing
from quantmill.leases import Leases
from quantmill.packs import PLACE, Packs, Place, listed, write_place
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
    """What the cap is about: a unit by its key, with its path, or a pack. The least of them goes first."""

    used: int
    bytes: int
    name: str
    path: str = ""


class Store:
    """Units of work under `folder`, at most `max_bytes` of them.

    `made` and `reused` count the units of this process; `log` (default: stderr)
    is warned, once for each reason, where units cannot be kept. What it lacks is looked
    for in `others`, stores in which nothing is written.
    """

    def __init__(
        self, folder: Path, max_bytes: int = 50 << 30, log: Log | None = None, others: Iterable[Path] = ()
    ) -> None:
        self.folder = folder
        self.units = folder / "units"
        self.packs = Packs(folder / "packs")
        self.max_bytes = max_bytes
        self.made = self.reused = 0
        self._log = log or Log()
        self.leases = Leases(folder / "leases", self._log.say)
        self._warned: set[str] = set()
        self._mine: set[str] = set()  # keys and packs that this process has used
        self._expected = 0
        self._reserved = 0
        # What may be written before the folder is walked again; each process may run over by that much.
        self._room = max_bytes // 100
        self._full = False
        self._lock = threading.Lock()
        self._others = [Store(other, 0, log) for other in others]

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
            found = self._read(key)
        except OSError:
            return self._elsewhere(key)
        if found is None:  # damaged: it is made again
            with suppress(OSError):  # another user's
                path.unlink()
            return self._elsewhere(key)
        unit, pack = found
        with suppress(OSError):
            os.utime(path)
        if pack:
            self._use(pack)
        self._mine.add(key)
        return unit

    def _elsewhere(self, key: str) -> Unit | None:
        """The unit in another store, which is left as it is."""
        for other in self._others:
            with suppress(OSError):
                if (found := other._read(key)) is not None:
                    return found[0]._replace(placed=False)
        return None

    def _read(self, key: str) -> tuple[Unit, str] | None:
        """A unit as it stands here and the pack that it is in, if any; None where it is damaged. OSError
        where it cannot be read.
        """
        data = part_of(self._path(key), mapped=self.packs.mapped)
        place = Place.parse(data)
        unit = self._whole(key, data) if place is None else self._placed(key, place)
        return None if unit is None else (unit, "" if place is None else place.pack)

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
        return Unit(key, payload, place.sha256, self.packs.shared(place.pack))

    def _use(self, pack: str) -> None:
        self.packs.use(pack)
        self._mine.add(pack)

    def expect(self, keys: Iterable[str], size: int = 0) -> None:
        """Say which units this process is going to use, and how many bytes of them it will keep, where known.

        Those that are there count as used now: no room is made at their cost.
        """
        self._expected += size
        for key in keys:
            with suppress(OSError):
                place = Place.parse(part_of(self._path(key)))
                self._mine.add(key)
                if place is not None:
                    self._use(place.pack)
                os.utime(self._path(key))

    def has(self, key: str) -> bool:
        """Whether there is such a unit: cheap, and not verified."""
        return any(store._path(key).is_file() for store in (self, *self._others))

    def put(self, key: str, payload: Payload) -> None:
        """Keep a payload under its key, where the store can be written and its cap has room."""
        self._put(Unit(key, payload, hashlib.sha256(payload).digest()))

    def _put(self, unit: Unit) -> None:
        path, size = self._path(unit.key), _HEAD + len(unit.payload)
        before = 0
        with suppress(OSError):
            before = path.stat().st_size
        if size > before and not self._may_grow(size - before):
            return
        try:
            with writing(path, durable=False) as file:
                file.write(_MAGIC + unit.sha256)
                file.write(unit.payload)
            self._mine.add(unit.key)
        except QuantmillError as error:
            self._cannot_write(error)

    def _may_grow(self, size: int) -> bool:
        """Whether the cap and the disk have room for so many bytes more; else it is warned of."""
        with suppress(OSError):  # deleted meanwhile
            if self._reserved and shutil.disk_usage(self.folder).free < self._reserved + size:
                self._cannot_write("the disk has room for the output alone")
                return False
        with self._lock:
            if size > self._room and not self._full:
                self._make_room(size)
            if size <= self._room:
                self._room -= size
                return True
        return False

    def get_or_make(self, key: str, make: Callable[[], Payload], *, leased: bool = False) -> Payload:
        """The unit's payload; if the store lacks it, make and store it. Safe in several threads.

        With `leased` no other process makes it meanwhile: for what takes long.
        """
        return self.find_or_make(key, make, leased=leased).payload

    def find_or_make(
        self, key: str, make: Callable[[], Payload], *, keep: bool = True, leased: bool = False
    ) -> Unit:
        """As `get_or_make`, with what is known of the payload.

        What is made is not stored without `keep`: it comes into a file, which is a `pack`, and its
        lease lasts until it is recorded there.
        """
        unit = self.find(key)
        if unit is None and leased:
            unit = self.leases.acquire(key, partial(self.find, key))
        if unit is not None:
            with self._lock:
                self.reused += 1
            return unit
        try:
            payload = make()
            unit = Unit(key, payload, hashlib.sha256(payload).digest())
            if keep:
                self._put(unit)
        except BaseException:
            self.leases.release(key)
            raise
        if keep:
            self.leases.release(key)
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
                write_place(self._path(unit.key), place)
                self._mine |= {unit.key, pack}
            except (OSError, QuantmillError) as error:
                self._cannot_write(error)
            self.leases.release(unit.key)

        try:
            yield record
        finally:
            self.leases.release_all()
            with self._lock:
                self._make_room()

    def _path(self, key: str) -> Path:
        return self.units / key[0] / key

    def _cannot_write(self, reason: Exception | str) -> None:
        """Warn that units are not stored."""
        if isinstance(reason, Exception):
            reason = getattr(reason.__cause__ or reason, "strerror", None) or str(reason)
        what = f"the store cannot be written ({reason}), finished work is not kept"
        self._warn("disk", f"{what}; free some space, or give `store: {{path}}` another folder")

    def _warn(self, kind: str, line: str) -> None:
        """Warn once of a kind. The line names no unit, so that a run repeats it only once."""
        if kind not in self._warned:
            self._warned.add(kind)
            self._log.warn([f"{self.folder}: {line}"])

    def _make_room(self, size: int = 0) -> None:
        """Have the cap hold `size` bytes more: evict what was longest unused, down to nine tenths of the cap.

        Packs that no unit is in go first. What this process has used stays. Where the rest is not
        enough, no more is kept, and the folder is not walked again.
        """
        self.leases.sweep()
        units, places = self._entries()
        packs = [_Entry(pack.used, pack.bytes, pack.pack) for pack in self.packs.held()]
        total = sum(entry.bytes for entry in (*units, *places, *packs))
        if total + size > self.max_bytes:
            referred = self._referred(places, {entry.name for entry in packs})
            lost = [entry._replace(used=0) for entry in packs if entry.name not in referred]
            others = [
                entry
                for entry in (*units, *packs)
                if entry.name not in self._mine and (entry.path or entry.name in referred)
            ]
            evictable = sorted(entry for entry in (*lost, *others) if entry.bytes)
            stays = total - sum(entry.bytes for entry in evictable)
            fits = stays + size <= self.max_bytes
            goal = self.max_bytes * _TRIM_TO - size if fits else self.max_bytes
            for entry in evictable:
                if total <= goal:
                    break
                if self._evict(entry):
                    total -= entry.bytes
            if total + size > self.max_bytes:
                need = text.at_least(max(stays + size, self._expected))
                what = f"the cap, {text.size(self.max_bytes)}, is full of what is being used"
                cure = f"set `store: {{max: {need}}}` or more"
                self._warn("cap", f"{what}: further finished work is not kept; {cure}")
        left = self.max_bytes - total
        self._full = left < size <= self.max_bytes
        self._room = left if left < size else max(size, min(left, self.max_bytes // 100))

    def _evict(self, entry: _Entry) -> bool:
        """Delete a unit or a pack; False where it is another user's: it stays."""
        if not entry.path:
            return self.packs.remove(entry.name)
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
        for folder in listed(self.units):
            for entry in listed(folder):
                with suppress(OSError):  # gone, or another user's
                    stat = entry.stat()
                    if not entry.name.startswith("."):
                        kind = places if stat.st_size == PLACE.size else units
                        kind.append(_Entry(stat.st_mtime_ns, stat.st_size, entry.name, entry.path))
                    elif time.time() - stat.st_mtime > 3600 and not parts.is_held(Path(entry.path)):
                        os.unlink(entry.path)
        return units, places
