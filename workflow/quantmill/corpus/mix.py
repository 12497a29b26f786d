"""Which rows, how many chunks of each source, and in which order."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from quantmill.corpus.decode import Document
from quantmill.corpus.messages import BrokenRowError

_DIGEST_BYTES = 8
_MOST_REASONS = 12
_OTHER_REASONS = "for other reasons"


@dataclass(frozen=True)
class Row:
    """A chosen row: its digest, how often the same text was met again, its number in the source from 1."""

    document: Document
    digest: int
    copies: int
    number: int


@dataclass
class Broken:
    """How many rows are broken for one reason, and the number of the first of them."""

    rows: int
    first: int


@dataclass
class Selection:
    """The rows chosen, in their shuffled order, and what became of the others.

    `broken` are those that could not be read, by the reason; `taken` counts rows
    left out because another source has them; `all`: no row was left out for want
    of room.
    """

    rows: list[Row] = field(default_factory=list)
    read: int = 0
    broken: dict[str, Broken] = field(default_factory=dict)
    empty: int = 0
    taken: int = 0
    all: bool = True

    @property
    def rows_broken(self) -> int:
        """How many rows could not be read."""
        return sum(broken.rows for broken in self.broken.values())

    def add_broken(self, reason: str) -> None:
        """Count the row that was read last as broken."""
        if reason not in self.broken and len(self.broken) >= _MOST_REASONS:
            reason = _OTHER_REASONS
        self.broken.setdefault(reason, Broken(0, self.read)).rows += 1


def text_digest(text: str) -> int:
    """64 bits of BLAKE2b of the UTF-8: what tells rows apart."""
    return int.from_bytes(blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest(), "big")


def select(
    values: Iterable[object],
    decode: Callable[[object], Document],
    *,
    seed: int,
    characters: int,
    rows: int | None = None,
    taken: Collection[int] = (),
) -> Selection:
    """Choose rows by seeded priority sampling, in one pass and flat memory.

    Each distinct text has a key, BLAKE2b(seed, digest of the text). In the order
    of the keys, which is the shuffle, the first rows are kept until they hold
    `characters`, and at most `rows` of them: a uniform sample without
    replacement that depends on nothing but the seed and the set of texts, and
    not on their order, the batch size or the machine. Rows whose digest is in
    `taken` are left out.
    """
    selection = Selection()
    chosen: dict[int, tuple[Document, int, int]] = {}
    heap: list[tuple[int, int]] = []  # (-key, digest): the row to go first is on top
    limit = float("inf") if rows is None else rows
    held = 0
    salt = blake2b(str(seed).encode()).digest()
    for value in values:
        selection.read += 1
        try:
            document = decode(value)
        except BrokenRowError as error:
            selection.add_broken(str(error))
            continue
        if not document.text.strip():
            selection.empty += 1
            continue
        digest = text_digest(document.text)
        if digest in taken:
            selection.taken += 1
            continue
        if digest in chosen:
            first, copies, number = chosen[digest]
            chosen[digest] = first, copies + 1, number
            continue
        heapq.heappush(heap, (-_key(salt, digest), digest))
        chosen[digest] = document, 0, selection.read
        held += len(document.text)
        while len(heap) > limit or held - len(chosen[heap[0][1]][0].text) >= characters:
            selection.all &= len(heap) > limit
            _, last = heapq.heappop(heap)
            held -= len(chosen.pop(last)[0].text)
    ordered = sorted(heap, reverse=True)
    for _, digest in ordered:
        document, copies, number = chosen[digest]
        selection.rows.append(Row(document, digest, copies, number))
    return selection


def apportion(weights: Sequence[float], chunks: int) -> list[int]:
    """`chunks` shared out by weight, by the method of largest remainders; the first source wins a tie."""
    total = math.fsum(weights)
    quotas = [weight * chunks / total for weight in weights]
    counts = [int(quota) for quota in quotas]
    # Rounded, so that 0.1 + 0.2 does not decide between equal remainders.
    by_remainder = sorted(range(len(weights)), key=lambda i: (round(counts[i] - quotas[i], 9), i))
    for i in by_remainder[: chunks - sum(counts)]:
        counts[i] += 1
    return counts


def _key(salt: bytes, digest: int) -> int:
    data = digest.to_bytes(_DIGEST_BYTES, "big")
    return int.from_bytes(blake2b(data, key=salt, digest_size=_DIGEST_BYTES).digest(), "big")
