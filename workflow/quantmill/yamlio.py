"""YAML that others wrote: no key twice, no cycle, and no more of it than is reasonable.

An alias costs a few letters and may stand for all before it: a page of them is
more than any memory holds once it is gone through. So the tree is counted with
its aliases written out.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from quantmill.errors import QuantmillError

_MOST_ALIASED: Final = 100_000
"""Values for which aliases may stand, all written out. Of what is written there is no more than letters."""

_DEEPEST: Final = 100


class _Loader(yaml.SafeLoader):
    """Refuses what is nested too deeply where it stands: PyYAML's time for it grows with the square."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"nested more than {_DEEPEST} deep", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def load(text: str, where: object) -> Any:
    """The value of YAML text; `where` is its file. QuantmillError, with the line, for what is unsound."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check(root, len(text), where)
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise QuantmillError(f"no valid YAML{line} ({problem})", where, "put it right") from None
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:  # such as `!!int x`, or a 13th month
        raise QuantmillError(f"no valid YAML ({error})", where, "put it right, or in quotes") from None


def _check(root: yaml.Node, letters: int, where: object) -> None:
    left = letters + _MOST_ALIASED
    nodes = [(root, 0)]
    while nodes:
        node, depth = nodes.pop()
        left -= 1
        if left < 0:
            what = f"its aliases stand for more than {_MOST_ALIASED:,} values"
            raise QuantmillError(what, where, "write out what is meant")
        if depth > _DEEPEST:
            what = "an alias stands within what it stands for, or makes it too deep"
            raise QuantmillError(what, where, "write out what is meant")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            nodes += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += [(part, depth + 1) for part in node.value]
        elif any("\ud800" <= letter <= "\udfff" for letter in node.value):
            line = f"{where}: line {node.start_mark.line + 1}"
            raise QuantmillError(
                "half a letter (a lone surrogate), which no UTF-8 can hold", line, "remove it"
            )


def _check_keys(node: yaml.MappingNode, where: object) -> None:
    keys: set[str] = set()
    for key, _ in node.value:
        line = f"{where}: line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise QuantmillError("a key is a list or a mapping", line, "keys are words")
        if key.value in keys:
            raise QuantmillError(f"{key.value} is there twice", line, "rename or remove one")
        keys.add(key.value)
