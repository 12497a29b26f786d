"""How to load a model in the engine of this process. Only that engine is imported."""

from __future__ import annotations

from pathlib import Path

from quantmill.engine import library
from quantmill.engine.evaluator import Evaluator


def load(path: Path, *, context: int, batch: int, threads: int, sequences: int = 1) -> Evaluator:
    """The GGUF at `path` in the engine of this process, with room for `context` positions of each sequence.

    QuantmillError, with the engine's own words, where it cannot load the file.
    """
    if library.in_use() == "ik":
        from quantmill.engine import ik

        return ik.Evaluator(path, context=context, batch=batch, threads=threads)
    from quantmill.engine import mainline

    return mainline.Evaluator(path, context=context, batch=batch, threads=threads, sequences=sequences)
