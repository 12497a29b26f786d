"""What the text of a rule is made with: functions of wildcards, the command of a stage, patterns of names."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from quantmill import spec
from quantmill.errors import QuantmillError
from quantmill.stages import STAGES

T = TypeVar("T")


@contextmanager
def refusing() -> Iterator[None]:
    """End Snakemake with one line where the input is bad."""
    try:
        yield
    except QuantmillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def of(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """A function of Snakemake's wildcards: `function` of those that its parameters are named after."""
    names = list(inspect.signature(function).parameters)

    def of_wildcards(wildcards: Any) -> Any:
        with refusing():
            return function(*(getattr(wildcards, name) for name in names))

    return signed(of_wildcards)


def signed(function: Callable[..., T]) -> Callable[..., T]:
    """The same function of wildcards with its signature at hand, which Snakemake looks up for every job."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def spec_of(function: Callable[..., str], folder: Path) -> Callable[[Any], str]:
    """The same for a spec, as a word of a command line: a long one is a file in `folder`."""
    of_wildcards = of(function)

    def argument(wildcards: Any) -> str:
        with refusing():
            return spec.argument(of_wildcards(wildcards), folder)

    return signed(argument)


def files(function: Callable[[], list[str]]) -> list[str]:
    """The files of a target, now: bad input is refused when the workflow is read."""
    with refusing():
        return function()


def pattern(names: Iterable[str]) -> str:
    """The regular expression of these names, and of no other."""
    return "|".join(map(re.escape, sorted(names))) or r"(?!)"


def stage(name: str, arguments: str) -> str:
    """The shell command of a stage: it replaces the shell, under its watcher.

    To its own arguments come the spec, the log, and what the table of stages
    says that it takes.
    """
    known = STAGES[name]
    words = [f"exec python -m quantmill {name} --spec {{params.spec:q}}", arguments, "--log {log:q}"]
    if known.memory:
        words.append("--memory {resources.mem_mb}")
    if known.threads:
        words.append("--threads {threads}")
    if known.evaluates:
        words.append("--name {wildcards.model:q}")
    if known.store:
        words.append('--store "$QUANTMILL_STORE" --store-max "$QUANTMILL_STORE_MAX"')
        words.append('--store-read "$QUANTMILL_STORE_READ"')
    return " ".join(words)
