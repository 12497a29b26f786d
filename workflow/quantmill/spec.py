"""Canonical specs and digests: the identity of whatever is made here.

A `spec` is the canonical JSON of all that decides a stage's output. It is the
only param of a Snakemake rule (Snakemake compares params as a set of reprs, so
that two swapped values would go unseen), and the stage reads its own
configuration from it.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantmill.errors import QuantmillError
from quantmill.files import write_atomically
from quantmill.stages import VERSIONS, key

_BLOCK = 1 << 20
_LONGEST_ARGUMENT = 120 << 10  # characters, all ASCII; whatever a command line can hold stays on it


def canonical(value: Any) -> str:
    """Canonical JSON of plain data: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 (hex) of `value`: of its UTF-8 if it is text, else of its canonical JSON."""
    text = value if isinstance(value, str) else canonical(value)
    return hashlib.sha256(text.encode()).hexdigest()


def make(stage: str, config: Any, made_from: dict[str, Any], **more: Any) -> str:
    """The spec of one output of `stage`, named as in the table of stages.

    `config` is the stage's part of the user's configuration, `made_from` the
    digests of all that the output is made from.
    """
    spec = {
        "stage": key(stage),
        "version": VERSIONS[key(stage)],
        "config": config,
        "from": made_from,
    }
    return canonical(spec | more)


def argument(spec: str, folder: Path) -> str:
    """A spec as one word of a command line: itself, or `@` and its sha256 where it is long.

    The long one is written to `folder` under that name: Linux takes no word of
    over 128 KiB. (A shell's whole command would be one as well; Snakemake puts
    those of over 64 KiB into a script.) Equal specs have equal arguments, and
    others have others.
    """
    if len(spec) <= _LONGEST_ARGUMENT:
        return spec
    name = digest(spec)
    if not (folder / name).is_file():
        write_atomically(folder / name, spec.encode(), durable=False)
    return f"@{name}"


def read_argument(argument: str, folder: Path) -> dict[str, Any]:
    """The spec of an `argument`. QuantmillError for what is none, and where its file is not whole."""
    if argument.startswith("@"):
        path = folder / argument.removeprefix("@")
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != path.name:
            raise QuantmillError("no such spec, or not whole", path, "delete it and run snakemake again")
        argument = data.decode()
    with suppress(ValueError):
        spec = json.loads(argument)
        if isinstance(spec, dict) and "config" in spec:
            return spec
    raise QuantmillError("no canonical JSON with a field `config`")


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256", _bufsize=_BLOCK).hexdigest()
