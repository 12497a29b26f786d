"""What is wrong in the user's file, in one line with its path: pydantic's errors and YAML's own traps."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from quantmill import yamlio
from quantmill.errors import QuantmillError
from quantmill.files import read_user_text
from quantmill.text import duration

# A file server whose clock runs ahead by less than this is waited for.
_PATIENCE_SECONDS: Final = 10.0


def refuse(kind: str, text: str, field: str = "") -> PydanticCustomError:
    """An error of a validator: `text` as it is, at `field` below the place where it arose."""
    # The text goes in by a placeholder: braces in it are no placeholders themselves.
    return PydanticCustomError(kind, "{text}", {"text": text, "field": field})


def refuse_twice(where: str, names: list[str]) -> None:
    for number, name in enumerate(names):
        if name in names[:number]:
            raise refuse("twice", f"{name} is there twice; rename or remove one", f"{where}[{number}]")


def explain(error: ValidationError, file: str, hints: dict[str, str]) -> QuantmillError:
    """The first of pydantic's errors, in one line with its path in `file`.

    `hints` says what each pattern of the models wants.
    """
    first = error.errors(include_url=False)[0]
    context, given, kind = first.get("ctx", {}), first["input"], first["type"]
    where = f"{file}: {_path((*first['loc'], *_split(context.get('field', ''))))}".removesuffix(": ")
    messages = {
        "missing": "missing field; add it",
        "too_short": "is empty; give at least one",
        "string_type": f"must be text, not {_short(given)}; put it in quotes",
        "model_type": f"must be a mapping of fields, not {_short(given)}",
        "dict_type": f"must be a mapping of fields, not {_short(given)}",
        "list_type": f"must be a list, not {_short(given)}",
    }
    if "text" in context:
        what = context["text"]
    elif kind == "string_pattern_mismatch":
        what = f"{_short(given)} is not allowed; {hints[context['pattern']]}"
    else:
        message = first["msg"]
        what = messages.get(kind, f"{message[0].lower()}{message[1:]}, not {_short(given)}")
    return QuantmillError(what, where)


def check_yaml(path: Path) -> None:
    """Refuse unsound YAML: of a key that a mapping names twice, YAML itself would silently keep the last."""
    yamlio.load(read_user_text(path), path)


def check_file(path: Path, where: str) -> None:
    """Refuse a file that is not there."""
    if not path.is_file():
        raise QuantmillError(f"no such file: {path}", where, "check the path")


def check_input(path: Path, where: str, results: Path) -> None:
    """Refuse a file that would fail the jobs that read it.

    Snakemake removes outputs that are older than an input, so that a file from
    the future would undo all that is made of it; and it reads braces in a path
    as wildcards. A file of the next few seconds is waited for. The time that
    counts is that of the file system of the results, whose server may have
    another clock than this machine.
    """
    if "{" in str(path) or "}" in str(path):
        cure = "rename it, or link to it under another name"
        raise QuantmillError(f"{path} has braces, which Snakemake would read as wildcards", where, cure)
    changed = _changed(path)
    ahead = changed - time.time()
    if ahead > 0:
        ahead = changed - _now_in(results)
    if ahead > _PATIENCE_SECONDS:
        what = f"{path} was last changed {duration(ahead)} in the future"
        raise QuantmillError(what, where, f"set the clock right, or run: touch {shlex.quote(str(path))}")
    if ahead > 0:
        print(f"waiting {ahead:.0f} s: {path} was last changed in the future", file=sys.stderr, flush=True)
        time.sleep(ahead)


def _changed(path: Path) -> float:
    """When a file was last changed; of a link its own time counts too, as in Snakemake."""
    return max(path.stat().st_mtime, path.lstat().st_mtime)


def _now_in(folder: Path) -> float:
    """The time that a file made now in the folder, or in what is there of the folders above it, gets."""
    there = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # it cannot be written to, which is refused elsewhere
        return time.time()


def _split(field: str) -> list[str]:
    """The parts of a validator's own path; `[0]` stays one part, a model's dots are not split."""
    return [part for part in re.split(r"(?=\[)", field) if part]


def _path(parts: tuple[Any, ...]) -> str:
    """`models.x.recipes[2].name` of pydantic's location; tags of unions and the like left out."""
    path = ""
    for part in parts:
        text = f"[{part}]" if isinstance(part, int) else str(part)
        if re.fullmatch(r"<\w+>|\[key\]|function-.*|str|int|constrained-str|list\[.*\]", text):
            continue
        path += text if text.startswith("[") else f".{text}"
    return path.removeprefix(".")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
