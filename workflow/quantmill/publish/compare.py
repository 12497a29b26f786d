"""What an upload would change: each file of the model and of the repository, and its state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from quantmill.publish.files import SUMS, ByteRange, Item
from quantmill.publish.hub import Holdings, Stored

STATES: Final = {
    "new": "is not there yet",
    "changed": "is there as it was published earlier",
    "edited": "is there, but not as it was published from here",
    "unchanged": "is there already",
    "old": "was published earlier and is not among the files now: left alone",
    "foreign": "was not published from here: left alone",
    "unknown": "may be there: the repository did not answer",
}
"""The states of a file."""

UPLOADED: Final = ("new", "changed", "edited")

_HUBS_OWN = (".gitattributes",)


class Row(NamedTuple):
    """A file in the repository, or that will be; without a digest where the hub tells none."""

    state: str
    path: str
    bytes: int
    sha256: str | None


def compare(
    items: Iterable[Item], held: Holdings | None, published: dict[str, str], read: Callable[[str], bytes]
) -> list[Row]:
    """The state of each item, then of what else the repository holds.

    `published` are the digests of the repository's own list; `read` gives the
    bytes of a small file there, of which the hub knows no sha256.
    """
    there = {} if held is None else held.files
    rows = []
    for item in items:
        state = "new"
        if item.path in there:
            stored = there[item.path]
            state = "unchanged" if _same(item, stored) else "changed"
            if state == "changed" and item.path != SUMS:
                digest = stored.sha256 or hashlib.sha256(read(item.path)).hexdigest()
                state = "changed" if published.get(item.path) == digest else "edited"
        rows.append(Row(state, item.path, item.bytes, item.sha256))
    ours = {row.path for row in rows}
    for path, stored in sorted(there.items()):
        if path not in ours and path not in _HUBS_OWN:
            rows.append(Row("old" if path in published else "foreign", path, stored.bytes, stored.sha256))
    return rows


def table(rows: list[Row]) -> list[str]:
    """The rows as lines of text, the digests whole, then what the states mean."""
    states = max((len(row.state) for row in rows), default=0)
    sizes = max((len(f"{row.bytes:,}") for row in rows), default=0)
    paths = max((len(row.path) for row in rows), default=0)
    lines = [f"{'state':{states}}  {'bytes':>{sizes}}  {'file':{paths}}  sha256"]
    for row in rows:
        line = f"{row.state:{states}}  {row.bytes:>{sizes},}  {row.path:{paths}}  {row.sha256 or ''}"
        lines.append(line.rstrip())
    present = {row.state for row in rows}
    return [*lines, *(f"{state}: {meaning}" for state, meaning in STATES.items() if state in present)]


def _same(item: Item, stored: Stored) -> bool:
    """Whether the repository holds the item's bytes; a small file is known as git knows it."""
    if stored.bytes != item.bytes:
        return False
    if stored.sha256 is not None:
        return stored.sha256 == item.sha256
    if isinstance(item.content, ByteRange):
        return False
    data = item.content.read_bytes() if isinstance(item.content, Path) else item.content
    return stored.git == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
