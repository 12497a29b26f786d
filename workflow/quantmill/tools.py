"""The commands for people: what each does, reads and writes. No rule runs them, and they take no spec."""

from __future__ import annotations

from typing import Final, NamedTuple


class Tool(NamedTuple):
    """A command for people, which no rule runs and which takes no spec."""

    name: str
    what: str
    reads: str
    writes: str


TOOLS: Final[dict[str, Tool]] = {
    tool.name: tool
    for tool in (
        Tool(
            "recipe.interchange",
            what="import a published recipe, or export a plan",
            reads="a recipe in another form and the source's header; a plan",
            writes="a recipe; a plan in another form",
        ),
        Tool(
            "selftest.run",
            what="check the engines of this environment",
            reads="nothing",
            writes="what works and what does not",
        ),
        Tool(
            "engine.rpc",
            what="serve this machine's devices to other machines' runs",
            reads="nothing",
            writes="nothing",
        ),
        Tool(
            "config.file",
            what="print the JSON schema of config.yaml",
            reads="nothing",
            writes="docs/config.schema.json, to stdout",
        ),
    )
}
"""Commands for people, by name."""
