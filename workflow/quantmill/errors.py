"""The one error type: what is wrong, where, and the cure, in one line."""

from __future__ import annotations

from typing import Final

_LONGEST: Final = 4000
"""Characters of a line: a damaged file may hold names of any length."""


class QuantmillError(Exception):
    """Bad input, or a machine that cannot do the job.

    `what` says what is wrong, `where` names the file, field or tensor, `cure`
    says what to do. The message is one line: `where: what; cure`.
    """

    def __init__(self, what: str, where: object = None, cure: str | None = None) -> None:
        text = what if where is None else f"{where}: {what}"
        super().__init__(_one_line(text if cure is None else f"{text}; {cure}"))


def _one_line(text: str) -> str:
    """The text as one line of letters that every terminal and log shows as what they are.

    Names from a damaged file may hold a terminal's commands, or what no UTF-8 can hold: those are escaped.
    What is too long is cut in its middle.
    """
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"
