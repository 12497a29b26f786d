"""What imports what in quantmill: `python tests/imports.py > docs/imports.md` draws it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "workflow" / "quantmill"
CORE = "core"

_HEAD = """\
# Imports

Which package imports which. A test fails when this drawing is not true; to make it again:

```sh
python tests/imports.py > docs/imports.md
```

All packages import the core, the modules beside them, so the core is left out. An arrow is left out too where
other arrows lead the same way. There is no circle, neither of packages nor of modules.
"""


def name_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    """The files of all modules, by their dotted names."""
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def package_of(name: str) -> str:
    """The package of a dotted name within quantmill; `core` for what stands beside the packages."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1] / "__init__.py").is_file() else CORE


def imported(source: str, module: str) -> set[str]:
    """The dotted names that `source`, the text of `module`, imports anywhere in it, for types too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*package, *([node.module] if node.module else [])])
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return names


def of_modules() -> dict[str, set[str]]:
    """The modules that each module imports."""
    files = modules()
    return {
        name: {other for other in imported(path.read_text("utf-8"), name) & files.keys() if other != name}
        for name, path in files.items()
    }


def of_packages() -> dict[str, set[str]]:
    """The packages that each package imports, itself left out."""
    packages: dict[str, set[str]] = {}
    for name, others in of_modules().items():
        here = packages.setdefault(package_of(name), set())
        here |= {package_of(other) for other in others if package_of(other) != package_of(name)}
    return packages


def all_below(name: str, edges: Mapping[str, set[str]]) -> set[str]:
    """Whatever can be reached from `name`."""
    reached: set[str] = set()
    left = [name]
    while left:
        for other in edges.get(left.pop(), set()) - reached:
            reached.add(other)
            left.append(other)
    return reached


def drawing() -> str:
    """docs/imports.md: the packages as a mermaid graph, without the arrows that longer ways imply."""
    edges = {name: others - {CORE} for name, others in of_packages().items() if name != CORE}
    lines = ["flowchart TD"]
    for name in sorted(edges):
        implied = set().union(*(all_below(other, edges) for other in edges[name]))
        lines += [f"  {name} --> {other}" for other in sorted(edges[name] - implied)]
    alone = set(edges) - {name for name in edges if edges[name]} - set().union(*edges.values())
    lines += [f"  {name}" for name in sorted(alone)]
    return f"{_HEAD}\n```mermaid\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    print(drawing(), end="")
