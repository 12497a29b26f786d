"""Packs: files of the results that a store holds a second name of, so that their bytes are written once.

`packs/<id>/data` is a hard link to a file, made when its writing begins. What stands
there finished, or unfinished after a failure, stays readable when the file's own name
goes. The inode is the user's too: nothing here writes to it or sets its times, which
Snakemake compares; the last use of a pack is the mtime of `packs/<id>/used`.

A place is the record, under a unit's key, of where its payload lies in a pack.
"""

from __future__ import annotations

import os
import secrets
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple, Self

from quantmill import machine, parts
from quantmill.files import part_of, write_atomically

PLACE: Final = struct.Struct("<16s32s16sQQ")
"""A place as a file: magic, sha256 of the payload, pack, offset, size."""

_MAGIC: Final = b"quantmill-place1"


class Place(NamedTuple):
    """Where a payload lies: `size` bytes of a pack from `offset`, with this digest."""

    sha256: bytes
    pack: str
    offset: int
    size: int

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Self | None:
        """The place that a file of the store is; None for whatever else it is."""
        if len(data) != PLACE.size:
            return None
        magic, sha256, pack, offset, size = PLACE.unpack(data)
        return cls(sha256, pack.hex(), offset, size) if magic == _MAGIC else None

    def to_bytes(self) -> bytes:
        """The file that it is in the store."""
        return PLACE.pack(_MAGIC, self.sha256, bytes.fromhex(self.pack), self.offset, self.size)


class Held(NamedTuple):
    """A pack as it counts: its last use (ns), and its bytes if no other name of the file holds them."""

    used: int
    bytes: int
    pack: str


class Packs:
    """The packs below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def mapped(self) -> bool:
        """Whether what is there may be mapped: on a network, another machine may delete it meanwhile."""
        return not machine.on_network(self.folder)

    def can_link(self, folder: Path) -> bool:
        """Whether a file in `folder` can become a pack: on another file system, for one, it cannot."""
        name = parts.new(Path("link")).name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("xb"):
                os.link(folder / name, self.folder / name)
            return True
        except OSError:
            return False
        finally:
            for path in (self.folder / name, folder / name):
                with suppress(OSError):
                    path.unlink()

    def add(self, file: Path) -> str:
        """A new pack, of a file that is being written. An OSError is the caller's."""
        pack = secrets.token_hex(16)
        (self.folder / pack).mkdir(parents=True)
        try:
            (self.folder / pack / "used").touch()
            os.link(file, self._data(pack))
        except OSError:
            self.remove(pack)
            raise
        return pack

    def read(self, place: Place) -> memoryview:
        """The bytes at a place, whatever they are by now.

        An OSError, or the QuantmillError of a file that became shorter, is the caller's.
        """
        return part_of(self._data(place.pack), place.offset, place.size, mapped=self.mapped)

    def shared(self, pack: str) -> bool:
        """Whether the file has another name, so that the pack takes no room."""
        with suppress(OSError):
            return self._data(pack).stat().st_nlink > 1
        return False

    def use(self, pack: str) -> None:
        """Note that a pack is used now, where this user may."""
        with suppress(OSError):
            os.utime(self.folder / pack / "used")

    def held(self) -> Iterator[Held]:
        """All packs; what is left of one that was never whole is removed after an hour."""
        for folder in listed(self.folder):
            try:
                data, used = self._data(folder.name).stat(), (Path(folder) / "used").stat()
                yield Held(used.st_mtime_ns, 0 if data.st_nlink > 1 else data.st_size, folder.name)
            except OSError:
                with suppress(OSError):  # another user's, or gone
                    if time.time() - folder.stat().st_mtime > 3600:
                        self.remove(folder.name)

    def remove(self, pack: str) -> bool:
        """Forget a pack; False where this user may not."""
        folder = self.folder / pack
        try:
            for path in (self._data(pack), folder / "used"):
                path.unlink(missing_ok=True)
            folder.rmdir()
        except NotADirectoryError:  # the probe of a killed process
            with suppress(OSError):
                folder.unlink()
        except FileNotFoundError:
            pass
        except OSError:
            return not self._data(pack).exists()
        return True

    def _data(self, pack: str) -> Path:
        return self.folder / pack / "data"


def write_place(path: Path, place: Place) -> None:
    """Write a place; over another one in its file. A file that replaces another is flushed at once by some
    file systems, which takes longer than reading the unit; what a crash tears is detected.
    """
    with suppress(OSError), path.open("r+b") as file:
        if os.fstat(file.fileno()).st_size == PLACE.size:
            file.write(place.to_bytes())
            return
    write_atomically(path, place.to_bytes(), durable=False)


def listed(folder: os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where it is none, or closed to this user."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
