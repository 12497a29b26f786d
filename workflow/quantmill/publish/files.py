"""What of a model's results goes into its repository, and under which names."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from quantmill.errors import QuantmillError
from quantmill.files import is_file, split_lines
from quantmill.formats import publication
from quantmill.formats.checks import CHECKS
from quantmill.formats.proof import LOCK, VERIFIED
from quantmill.spec import file_sha256

SUMS: Final = "SHA256SUMS"
"""The repository's own list of what was published from here: `sha256sum -c SHA256SUMS` checks a download."""

WITHHELD: Final = "withheld.json"
"""What the card withholds and why, beside the card."""

_BLOCK = 8 << 20
_MARK = "# published by quantmill"


class ByteRange(NamedTuple):
    """A file that is not there by itself: a header, then `length` bytes of `file` from `start`."""

    header: bytes
    file: Path
    start: int
    length: int

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self.header) + self.length

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, in blocks."""
        yield self.header
        with self.file.open("rb") as file:
            file.seek(self.start)
            for at in range(0, self.length, _BLOCK):
                yield file.read(min(_BLOCK, self.length - at))


class Item(NamedTuple):
    """A file of the repository: its path there, its content here, its size and digest."""

    path: str
    content: Path | bytes | ByteRange
    bytes: int
    sha256: str


def items_of(
    results: Path,
    model: str,
    recipes: Iterable[str],
    include: Collection[str],
    measured: Iterable[str] = (),
    *,
    signed: bool = False,
    card: bool = True,
) -> list[Item]:
    """The files of one model, `recipes` being those that are not withheld; by path.

    `measured` are the measurements that the card is written from, below `results`: what an older
    config left there is none of them. `signed`: the lock is. Without `card` all but that.

    The card and what it shows go to the root, as they lie in `card/`; beside
    them the GGUFs, the lock and the statements, and whatever `include` names. QuantmillError where a file is
    missing or is not the one that its facts describe.
    """
    named = list(recipes)
    items = [
        *(_card(results / "card", named) if card else ()),
        *(item for recipe in named for item in _quant(results / "gguf", f"{model}-{recipe}.json")),
        *(_item(path, file) for path, file in _proof(results, named, signed)),
        *(_item(path, file) for path, file in _beside(results, named, include, measured)),
    ]
    return sorted(items, key=lambda item: item.path)


def below(folder: str, items: Iterable[Item]) -> list[Item]:
    """The files of the model `folder`, for the repository of another: its GGUFs and their statements, which
    have its name, stay where they are; all else goes below a folder of its name.
    """
    own = (f"{folder}-", f"{folder}.")
    return [
        item if item.path.startswith(own) else item._replace(path=f"{folder}/{item.path}") for item in items
    ]


def withheld_in(results: Path) -> list[str]:
    """The recipes that the card withholds."""
    path = results / "card" / WITHHELD
    return [entry["recipe"] for entry in publication.WITHHELD.read(path)["withheld"]] if path.exists() else []


def unsound(results: Path, recipes: list[str]) -> list[str]:
    """What is wrong with the files of these recipes, by their checks."""
    reports = [CHECKS.read(results / "checks" / f"{recipe}.json") for recipe in recipes]
    return [f"{report['file']} failed its check: {line}" for report in reports for line in report["failures"]]


def sums_of(items: Iterable[Item], earlier: dict[str, str]) -> Item:
    """The repository's list of digests: these files', and those published earlier that it still holds."""
    digests = earlier | {item.path: item.sha256 for item in items}
    lines = [_MARK, *(f"{digest}  {path}" for path, digest in sorted(digests.items()))]
    data = ("\n".join(lines) + "\n").encode()
    return Item(SUMS, data, len(data), hashlib.sha256(data).hexdigest())


def read_sums(data: bytes) -> dict[str, str]:
    """The digests by path that `sums_of` wrote; none where something else wrote the list."""
    first, *rest = split_lines(data.decode(errors="replace")) or [""]
    if first != _MARK:
        return {}
    return {path: digest for digest, _, path in (line.partition("  ") for line in rest)}


def _card(card: Path, recipes: list[str]) -> Iterator[Item]:
    """The card, its pictures, the page and the Modelfiles; not what an older config left there."""
    text = (card / "README.md").read_text("utf-8")
    pictures = (path for path in sorted(card.glob("plots/*")) if f"plots/{path.name}" in text)
    modelfiles = (card / "modelfiles" / f"Modelfile.{recipe}" for recipe in recipes)
    for path in (card / "README.md", card / "index.html", card / WITHHELD, *pictures, *modelfiles):
        if path.exists():
            yield _item(path.relative_to(card).as_posix(), path)


def _quant(folder: Path, facts: str) -> Iterator[Item]:
    """A recipe's GGUF, or its parts, with the digests that were taken when they were written."""
    described = publication.FACTS.read(folder / facts)
    for part in publication.files_of(described):
        path = folder / part["file"]
        if Path(part["file"]).is_absolute() or ".." in Path(part["file"]).parts or not is_file(path):
            what = f"names {part['file']}, which is no file beside it"
            raise QuantmillError(what, folder / facts, "delete it to have both made again")
        if path.stat().st_size != part["bytes"]:
            what = f"has {path.stat().st_size:,} bytes, not {part['bytes']:,}"
            raise QuantmillError(what, path, "delete it to have it made again")
        yield Item(part["file"], path, part["bytes"], part["sha256"])


def _proof(results: Path, recipes: list[str], signed: bool) -> Iterator[tuple[str, Path]]:
    """The lock and its signature, what came of verifying it, and a statement beside each file."""
    path = results / "lock.json"
    lock = LOCK.read(path)
    yield path.name, path
    verified = results / "verify.json"
    if signed:
        yield "lock.json.sig", results / "lock.json.sig"
    if verified.exists() and VERIFIED.read(verified)["lock"] == file_sha256(path):
        yield verified.name, verified
    files = [part["file"] for recipe in recipes for part in lock["recipes"][recipe]["published"]]
    for name in [f"{file}.derivation.json" for file in files]:
        yield name, results / "statements" / name
    for file in sorted((results / "statements").glob("*.conversion.json")):
        yield file.name, file


def _beside(
    results: Path, recipes: list[str], include: Collection[str], measured: Iterable[str]
) -> Iterator[tuple[str, Path]]:
    if "imatrix" in include:
        for name in ("imatrix.gguf", "imatrix.dat"):
            if (results / name).exists():
                yield name, results / name
    if "recipes" in include:
        for recipe in recipes:
            for name in (f"recipes/{recipe}.yaml", f"plans/{recipe}.tsv"):
                yield name, results / name
    if "measurements" in include:
        for name in measured:
            yield name, results / name
    if "logs" in include:
        for path in sorted((results / "logs").rglob("*.log")):
            yield path.relative_to(results).as_posix(), path


def _item(path: str, file: Path) -> Item:
    return Item(path, file, file.stat().st_size, file_sha256(file))
