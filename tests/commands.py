"""The command of a stage, for tests that run it."""

from __future__ import annotations

import sys


def command(stage: str, spec: str, **options: object) -> list[str]:
    """`python -m quantmill.STAGE --spec ...` with the options by their names."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", f"quantmill.{stage}", "--spec", spec, *words]
