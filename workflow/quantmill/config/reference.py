"""The reference of config.yaml in docs/config.md, made from the config's JSON schema.

`python -m quantmill.config.reference > docs/config.md` writes it anew. A unit
test fails where the page and the models differ.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, get_args

from quantmill.config import fields
from quantmill.config.file import schema

Node = dict[str, Any]

_HEAD: Final = """# The config

Every field of `config.yaml`: its type, its default, and what it means. This page is made from the models
in `workflow/quantmill/config/` (`python -m quantmill.config.reference`). Editors read the same from
[config.schema.json](config.schema.json).

- A field without a default must be given. The default *none* means that the field may be left out.
- An unknown field, a wrong type and a file that does not exist are refused before any work starts.
  The error names the path of the field and the cure.
- A *size* is a number and a unit: B, KB, MB, GB, TB (powers of 10) or KiB, MiB, GiB, TiB (powers of 2).
- In a *path* `~` is the home folder. Braces are refused, since Snakemake reads them as wildcards.
- A *name* becomes part of file names: letters, digits and `. _ + -`.
- A second config given by `--configfile` replaces `config.yaml`. The two are not merged. Targets stand
  before it, as in `snakemake plans --configfile x.yaml`: Snakemake takes every word behind it as a config.
"""

_PATTERNS: Final = (
    ("size", fields.Size),
    ("name", fields.Name),
    ("path", fields.FilePath),
    ("path of a GGUF or manifest.tsv", fields.GgufPath),
    ("path of a GGUF inside it", fields.GgufFile),
    ("organisation/name", fields.Repository),
    ("organisation/name", fields.PublishedRepository),
    ("commit, 40 hexadecimal digits", fields.Commit),
    ("name of a Python package", fields.Package),
)
_PLAIN: Final = {"string": "text", "boolean": "true or false", "integer": "integer", "number": "number"}


def _words_by_pattern() -> dict[str, str]:
    return {
        part.pattern: word for word, kind in _PATTERNS for part in get_args(kind) if hasattr(part, "pattern")
    }


def _options(node: Node) -> list[Node]:
    """The alternatives of a union, unions within it laid out flat, null left out."""
    union = node.get("anyOf") or node.get("oneOf")
    if union is None:
        return [] if node.get("type") == "null" else [node]
    return [option for part in union for option in _options(part)]


def _parts(node: Node, path: str) -> Iterator[tuple[str, str]]:
    """The models that a field's value is made of: the path and the name of each."""
    for option in _options(node):
        if "$ref" in option:
            yield path, option["$ref"].rpartition("/")[2]
        elif option.get("type") == "array":
            yield from _parts(option["items"], f"{path}[]")
        for value in option.get("patternProperties", {}).values():
            yield from _parts(value, f"{path}.NAME")


def _sections(root: Node) -> dict[str, list[str]]:
    """The paths of each model below the config, the nearest first; models in the order of a reader."""
    users: dict[str, list[str]] = {}
    waiting = deque([("", root)])
    while waiting:
        path, node = waiting.popleft()
        for field, value in node["properties"].items():
            for at, name in _parts(value, f"{path}.{field}".lstrip(".")):
                users.setdefault(name, []).append(at)
                if len(users[name]) == 1:
                    waiting.append((at, root["$defs"][name]))
    return users


def _type(node: Node, words: dict[str, str]) -> str:
    """The type of a field in words."""
    return " or ".join(dict.fromkeys(_single(option, words) for option in _options(node)))


def _single(node: Node, words: dict[str, str]) -> str:
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in node or "enum" in node:
        return " or ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    if node["type"] == "array":
        return f"list of {_type(node['items'], words)}"
    if node["type"] == "object":
        values = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
        value = next((value for value in values if isinstance(value, dict)), None)
        return f"mapping from name to {_type(value, words)}" if value else "mapping"
    word = words.get(node.get("pattern", ""), _PLAIN[node["type"]])
    if "minimum" in node:
        word += f", {node['minimum']} or more"
    return f"{word}, more than {node['exclusiveMinimum']}" if "exclusiveMinimum" in node else word


def _default(node: Node, required: bool) -> str:
    if required:
        return "**required**"
    value = node.get("default")
    if value is None:
        return "*none*"
    # A section's own default only repeats those of its fields.
    return "see there" if isinstance(value, dict) and value else f"`{json.dumps(value, ensure_ascii=False)}`"


def _table(node: Node, words: dict[str, str]) -> str:
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field, value in node["properties"].items():
        cells = (
            f"`{field}`",
            _type(value, words),
            _default(value, field in node.get("required", [])),
            value.get("description", ""),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


def reference() -> str:
    """The page docs/config.md."""
    root, words = schema(), _words_by_pattern()
    parts = [_HEAD, "## The file\n", _table(root, words) + "\n"]
    for name, paths in _sections(root).items():
        node = root["$defs"][name]
        places = ", ".join(f"`{path}`" for path in dict.fromkeys(paths))
        parts += [f"## {name}\n", f"In {places}. {node.get('description', '')}\n"]
        if node.get("additionalProperties") is True:
            parts.append("Every further field is a parameter of the template.\n")
        parts.append(_table(node, words) + "\n")
    return "\n".join(parts).rstrip("\n") + "\n"


def main() -> None:
    """Print the page."""
    print(reference(), end="")


if __name__ == "__main__":
    main()
