"""The one error type: what is wrong, where, and the cure, in one line."""

from __future__ import annotations


class QuantmillError(Exception):
    """Bad input, or a machine that cannot do the job.

    `what` says what is wrong, `where` names the file, field or tensor, `cure`
    says what to do. The message is one line: `where: what; cure`.
    """

    def __init__(self, what: str, where: object = None, cure: str | None = None) -> None:
        text = what if where is None else f"{where}: {what}"
        super().__init__(" ".join((text if cure is None else f"{text}; {cure}").split()))
