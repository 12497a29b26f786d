"""From a model's answer to code, and what is odd about an answer."""

from __future__ import annotations

import ast
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Final

from quantmill.evaluate.problems import Problem

_FENCE: Final = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_CODE: Final = re.compile(r"^(?:from|import|def|async def|class|@)[\s\w]", re.MULTILINE)
_TIMES: Final = 4
_LEAST: Final = 32
_Z: Final = 1.959963984540054  # the standard normal's 97.5 % quantile


def strip_thinking(text: str) -> str:
    """The answer without the thinking before it; empty where the thinking never ended."""
    _, mark, after = text.rpartition("</think>")
    return after if mark else text.partition("<think>")[0]


def is_fenced(text: str) -> bool:
    """Whether the answer holds a block of code between fences."""
    return _FENCE.search(strip_thinking(text)) is not None


def code_of(text: str, problem: Problem, *, chat: bool) -> str:
    """The code, complete with the function, that an answer stands for.

    Of a completion: the prompt and what follows it. Of a chat: of its fenced blocks
    the first that defines the function, else the first; where there is no fence,
    from the first line that looks like code. The imports and helpers of the prompt
    come before it; code that does not define the function counts as its body.
    """
    if not chat:
        return problem.prompt + text
    text = strip_thinking(text)
    defines = re.compile(rf"^[ \t]*(?:async )?def {re.escape(problem.entry_point)}\b", re.MULTILINE)
    blocks = [match[1] for match in _FENCE.finditer(text)]
    code = next((block for block in blocks if defines.search(block)), blocks[0] if blocks else None)
    if code is None:
        first = _CODE.search(text)
        code = text[first.start() :] if first else text
    code = textwrap.dedent(code)
    if defines.search(code):
        return f"{problem.preamble}{code}"
    body = code.strip("\n")
    return problem.prompt + (body if body[:1].isspace() else textwrap.indent(body, "    ")) + "\n"


def is_verbatim(code: str, problem: Problem) -> bool:
    """Whether code that compiles has the authors' solution, but for comments, docstrings and layout."""
    body = _body(code, problem.entry_point)
    return body is not None and body == _body(problem.solution, problem.entry_point)


def is_repetition(tokens: Sequence[int]) -> bool:
    """Whether the tokens end in a loop: one stretch four times over, 32 tokens or more in all."""
    count = len(tokens)
    backwards = list(reversed(tokens))
    for period in range(1, count // _TIMES + 1):
        length = max(_TIMES * period, _LEAST)
        if length <= count and all(backwards[i] == backwards[i + period] for i in range(length - period)):
            return True
    return False


def wilson(passed: int, count: int) -> tuple[float, float]:
    """Wilson's score interval (95 %) of a share, `passed` of `count` (E. B. Wilson, JASA 22, 1927)."""
    share, spread = passed / count, _Z**2 / count
    middle = share + spread / 2
    width = _Z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    low, high = (middle - width) / (1 + spread), (middle + width) / (1 + spread)
    return low if passed else 0.0, high if passed < count else 1.0


def _body(code: str, name: str) -> str | None:
    try:
        tree = ast.parse(code)
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        body = functions[-1].body if functions else []
        # a docstring is a constant that stands alone, wherever it stands
        bare = (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in body)
        statements = (line for line, alone in zip(body, bare, strict=True) if not alone)
        return "\n".join(ast.dump(statement) for statement in statements)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
