"""Which wheel each pin of the locks has for each Python and platform.

    python envs/wheels.py PYLOCK...        what uv found, in PEP 751's form: writes wheels.tsv (`make lock`)

A lock's hashes do not tell what they are hashes of. wheels.tsv names for every pin
the wheels that pip would take, for CPython 3.11 to 3.14 on Linux (x86-64 and arm64,
glibc 2.28) and on macOS 14 (arm64): package, version, wheel tag, SHA-256.
"""

from __future__ import annotations

import csv
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms, parse_tag
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
TABLE = HERE / "wheels.tsv"
PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
# Built where they are installed; all but llama-cpp-python as pure Python (see PIP in the Makefile).
SDISTS = {"llama-cpp-python", "connection-pool", "immutables", "rouge-score", "sqlitedict", "word2number"}


class Pin(NamedTuple):
    """A line of a lock."""

    lock: str
    requirement: Requirement
    hashes: frozenset[str]

    @property
    def package(self) -> tuple[str, str]:
        """Name and version."""
        (specifier,) = self.requirement.specifier
        return canonicalize_name(self.requirement.name), specifier.version


class Wheel(NamedTuple):
    """A row of the table; `tag` is that of the file's name, such as cp311-cp311-manylinux_2_28_x86_64."""

    name: str
    version: str
    tag: str
    sha256: str


class Machine(NamedTuple):
    """A Python on a platform."""

    python: tuple[int, int]
    system: str
    processor: str

    def __str__(self) -> str:
        return f"Python {self.python[0]}.{self.python[1]} on {self.system} {self.processor}"

    def wants(self, requirement: Requirement) -> bool:
        """Whether pip would install `requirement` here."""
        version = f"{self.python[0]}.{self.python[1]}"
        environment = {
            "implementation_name": "cpython",
            "implementation_version": f"{version}.0",
            "os_name": "posix",
            "platform_machine": self.processor,
            "platform_python_implementation": "CPython",
            "platform_system": self.system.capitalize(),
            "python_full_version": f"{version}.0",
            "python_version": version,
            "sys_platform": self.system,
        }
        return requirement.marker is None or requirement.marker.evaluate(environment)

    def tags(self) -> list[Tag]:
        """The tags of the wheels that this machine takes, the best first."""
        if self.system == "darwin":
            platforms = list(mac_platforms((14, 0), self.processor))
        else:
            levels = [f"manylinux_2_{minor}" for minor in range(28, 4, -1)]
            aliases = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
            for minor, alias in aliases.items():
                levels.insert(levels.index(f"manylinux_2_{minor}") + 1, alias)
            platforms = [f"{level}_{self.processor}" for level in (*levels, "linux")]
        interpreter = f"cp{self.python[0]}{self.python[1]}"
        return [
            *cpython_tags(self.python, abis=[interpreter], platforms=platforms),
            *compatible_tags(self.python, interpreter, platforms),
        ]


MACHINES = [Machine(python, *platform) for python in PYTHONS for platform in PLATFORMS]


def pins(folder: Path = HERE) -> list[Pin]:
    """Every line of every lock in `folder`."""
    return [pin for lock in sorted(folder.glob("*.lock")) for pin in _lines(lock)]


def _lines(lock: Path) -> Iterator[Pin]:
    for line in lock.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
            yield Pin(lock.stem, Requirement(requirement), frozenset(hashes))


def table(path: Path = TABLE) -> list[Wheel]:
    """The rows of wheels.tsv."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [Wheel(*row) for row in csv.reader(stream, delimiter="\t")][1:]


def missing(locked: Iterable[Pin], wheels: Iterable[Wheel]) -> list[str]:
    """A line for each pin and machine that lacks a wheel, or whose wheel's hash is not in the lock."""
    by_package = _by_package(wheels)
    return [
        f"{pin.lock}.lock: {pin.package[0]} {pin.package[1]}: no wheel for {machine}"
        for pin in locked
        if pin.package[0] not in SDISTS
        for machine in MACHINES
        if machine.wants(pin.requirement)
        and _best(machine, [wheel for wheel in by_package.get(pin.package, []) if wheel.sha256 in pin.hashes])
        is None
    ]


def chosen(locked: Iterable[Pin], wheels: Iterable[Wheel]) -> list[Wheel]:
    """Of `wheels`, those that pip would take for `locked` on one of the machines, in order."""
    by_package = _by_package(wheels)
    best = (
        _best(machine, by_package.get(pin.package, []))
        for pin in locked
        if pin.package[0] not in SDISTS
        for machine in MACHINES
        if machine.wants(pin.requirement)
    )
    return sorted({wheel for wheel in best if wheel is not None})


def _by_package(wheels: Iterable[Wheel]) -> dict[tuple[str, str], list[Wheel]]:
    found: dict[tuple[str, str], list[Wheel]] = {}
    for wheel in wheels:
        found.setdefault((wheel.name, wheel.version), []).append(wheel)
    return found


@cache
def _order(machine: Machine) -> dict[Tag, int]:
    return {tag: place for place, tag in enumerate(machine.tags())}


def _best(machine: Machine, wheels: list[Wheel]) -> Wheel | None:
    order = _order(machine)
    ranked = [
        (min(order[tag] for tag in fitting), wheel)
        for wheel in wheels
        if (fitting := parse_tag(wheel.tag) & order.keys())
    ]
    return min(ranked)[1] if ranked else None


def _found(pylock: Path) -> Iterator[Wheel]:
    """The wheels of a file that `uv pip compile --format pylock.toml` wrote."""
    for package in tomllib.loads(pylock.read_text("utf-8"))["packages"]:
        for wheel in package.get("wheels", []):
            file = wheel.get("name") or wheel["url"].rpartition("/")[2]
            tag = "-".join(file.removesuffix(".whl").split("-")[-3:])
            name, version = canonicalize_name(package["name"]), package["version"]
            yield Wheel(name, version, tag, wheel["hashes"]["sha256"])


def main() -> None:
    """Write wheels.tsv: what stands in it and is still locked, and what the arguments tell."""
    locked = pins()
    known = table() if TABLE.exists() else []
    wheels = chosen(locked, {*known, *(wheel for path in sys.argv[1:] for wheel in _found(Path(path)))})
    with TABLE.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerows([Wheel._fields, *wheels])
    if lines := missing(locked, wheels):
        sys.exit("\n".join(f"error: {line}" for line in lines))


if __name__ == "__main__":
    main()
