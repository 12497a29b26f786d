"""The sections of the card: each a module with `build`, and a template of the same name.

`build` returns what its template needs, or None where the card has no such
section.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from quantmill.card.sections import (
    choice,
    contents,
    credits,
    divergence,
    draft,
    embeddings,
    files,
    head,
    humaneval,
    importance,
    memory,
    none_offered,
    perplexity,
    projector,
    recipes,
    rounding,
    same_size,
    sensitivity,
    served,
    size_targeted,
    speed,
    summary,
    table,
    tasks,
    together,
    usage,
    withheld,
)
from quantmill.card.view import View

Section = Callable[[View], dict[str, Any] | None]

SECTIONS: Final[dict[str, Section]] = {
    "head": head.build,
    "choice": choice.build,
    "table": table.build,
    "together": together.build,
    "withheld": withheld.build,
    "same_size": same_size.build,
    "usage": usage.build,
    "summary": summary.build,
    "humaneval": humaneval.build,
    "tasks": tasks.build,
    "divergence": divergence.build,
    "embeddings": embeddings.build,
    "projector": projector.build,
    "rounding": rounding.build,
    "perplexity": perplexity.build,
    "speed": speed.build,
    "served": served.build,
    "draft": draft.build,
    "memory": memory.build,
    "contents": contents.build,
    "size_targeted": size_targeted.build,
    "sensitivity": sensitivity.build,
    "importance": importance.build,
    "recipes": recipes.build,
    "files": files.build,
    "credits": credits.build,
}
"""All sections by the names of their templates, in the order of the card."""

NONE_OFFERED: Final[dict[str, Section]] = {
    "head": head.build,
    "none_offered": none_offered.build,
    "withheld": withheld.build,
}
"""The same where all files are withheld."""
