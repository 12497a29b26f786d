"""Which heads of multi-token prediction (MTP) the pinned llama.cpp computes."""

from __future__ import annotations

from typing import Final

from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header
from quantmill.formats.settings import ImatrixFile

SINGLE: Final = frozenset(
    (
        "bailingmoe3",
        "cohere2moe",
        "deepseek2",
        "deepseek32",
        "glm-dsa",
        "glm4moe",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
    )
)
"""Architectures whose graph of the head takes one head (src/models/*.cpp, `graph_mtp`)."""

CHAINED: Final = frozenset(("hy_v3", "mimo2", "step35"))
"""Those of several heads, one for each further token."""


def check_head(header: Header, where: object, field: str = "imatrix.mtp") -> None:
    """Refuse a model without a head, or with one that the engine has no graph for, of which `field` of the
    config asks something.
    """
    heads = header.layers - header.evaluated
    cure = f"leave out `{field}` for it"
    if not header.has_mtp:
        raise QuantmillError("has no layer of multi-token prediction", where, cure)
    if header.architecture in CHAINED or (header.architecture in SINGLE and heads == 1):
        return
    what = f"{heads} heads" if header.architecture in SINGLE else "a head"
    raise QuantmillError(
        f"the engine does not know {what} for multi-token prediction of {header.architecture}", where, cure
    )


def has_values(header: Header, imatrix: ImatrixFile | None, where: object) -> bool:
    """Whether the head has importance values. QuantmillError where they are asked for and cannot be had."""
    asked = imatrix is not None and imatrix.get("mtp", False)
    if asked:
        check_head(header, where)
    return asked
