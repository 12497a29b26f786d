"""The environment variables of stages, and what in those of the user would change what they import."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from quantmill.errors import QuantmillError

# The packages whose version decides a result or whether a stage runs at all.
_PINNED: Final = ("snakemake", "numpy", "pyarrow", "gguf", "jinja2", "pydantic", "yaml", "scipy", "llama_cpp")


def check_python_path(value: str) -> None:
    """Refuse a PYTHONPATH (its `value`) that brings other packages in place of the pinned ones.

    Environment modules of clusters set it; its folders come before the
    environment's own, for Snakemake as for each stage.
    """
    for folder in filter(None, value.split(os.pathsep)):
        if Path(folder).resolve().is_relative_to(Path(sys.prefix).resolve()):
            continue
        for package in _PINNED:
            spec = PathFinder.find_spec(package, [folder])
            # A folder that only has the name, without code, gives way to the real package.
            if spec is not None and spec.loader is not None:
                raise QuantmillError(
                    f"{folder} holds a {package} of its own, which would be used in place of the pinned one",
                    "PYTHONPATH",
                    "unset PYTHONPATH, or unload the environment module that sets it",
                )


def of_stages(library: str) -> dict[str, str]:
    """The variables by which stages find this interpreter's programs, `library`, and no other packages."""
    programs = str(Path(sys.executable).parent)
    return {
        "PATH": os.pathsep.join(filter(None, [programs, os.environ.get("PATH", "")])),
        "PYTHONPATH": library,
        "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",
    }
