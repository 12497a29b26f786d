"""What a process may not have: many open files, the rights of root."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WORKFLOW = Path(__file__).parents[1] / "workflow"
NOBODY = 65534

_DROP = f"""
import os
if os.geteuid() == 0:
    os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
"""


@contextmanager
def few_files(count: int = 64) -> Iterator[None]:
    """No file gets a number of `count` or above, in this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def without_rights(imports: str, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that is root's no more; `imports` are made before."""
    words = [sys.executable, "-c", imports + _DROP + code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(WORKFLOW)}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
