r"""What a row says: escaped text, lists of messages and broken rows told apart.

Data sets keep text as it is, as the inside of a JSON string (literal `\n`,
`\u00e9`, `\"`, sometimes with quotes that nobody escaped), or as a list of chat
messages, itself perhaps as JSON. A row is read for what it is, each on its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

Messages = list[dict[str, Any]]
Render = Callable[[Messages], str]

_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_EVIDENCE = re.compile(r'\\(?:[ntr"]|u[0-9a-fA-F]{4})')
_UNESCAPED_QUOTE = re.compile(r'\\.|(")', re.DOTALL)
# A string, character or code span: opened where no word ends, closed where none begins.
_QUOTED = re.compile(r"""(?<![\w\\])[rbfuL]{0,2}(["'`])(?!\s)(?:\\.|(?!\1)[^\\])*?\1(?!\w)""", re.DOTALL)
# LaTeX commands whose first letter makes a JSON escape; no English word is left of them after it.
_LATEX = re.compile(
    r"\\(?:nabla|neq?|neg|nu|not|notin|ni|newline|newcommand|nonumber|noindent|theta|times|text\w*|to|tan|tau"
    r"|tilde|top|triangle|beta|begin|bar|binom|big|Big|bf|bmod|boxed|bullet|frac|forall|flat|footnote|rho"
    r"|right\w*|rangle|rm|root|ref)(?![a-z])"
)
# A drive, then a step that is no line end; or two steps from a usual drive: `Q:\nYes\nA:` is a dialogue.
_WINDOWS_PATH = re.compile(r"(?<!\w)(?:[A-Za-z]:\\[a-zA-Z](?<![nu])|[CDEcde]:\\\w+\\\w)")
_JSON_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(?:role|content)"\s*:')


class BrokenRowError(ValueError):
    """A row that is neither text nor messages, whatever is tried."""


class Document(NamedTuple):
    """The text of one row; `chat`: its control tokens (`<|...|>`) are meant as such."""

    text: str
    chat: bool


def decode(value: object, render: Render, *, messages: bool = False) -> Document:
    """The document in one row; empty text for null.

    `value` is str, UTF-8 bytes, None or a list of {role, content}; `messages`
    says that the column holds nothing but messages, so that text which is not
    JSON of them is broken rather than text. Raises BrokenRowError, also for a lone
    surrogate, which no UTF-8 can hold.
    """
    if value is None:
        return Document("", chat=False)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise BrokenRowError("no UTF-8") from None
    if isinstance(value, list):
        document = Document(render(checked_messages(value)), chat=True)
    elif not isinstance(value, str):
        raise BrokenRowError(f"a row of type {type(value).__name__}")
    elif not value.strip():
        return Document("", chat=False)
    elif messages or _JSON_MESSAGES.match(value):
        document = Document(render(checked_messages(_parsed(value))), chat=True)
    else:
        document = Document(decode_text(value), chat=False)
    try:
        document.text.encode()
    except UnicodeEncodeError:
        raise BrokenRowError("a lone surrogate") from None
    return document


def decode_text(text: str) -> str:
    r"""The text that was meant: unescaped where the row is the inside of a JSON string, else as it is.

    A row is taken for escaped if all of these hold:

    - it has no real line end (an escaped text cannot; C code with `"\n"` in its
      string literals does);
    - every backslash in it starts a JSON escape, and none a LaTeX command
      (`\nabla`) or a step of a Windows path (`C:\new\table`);
    - at least one escape that text is full of (`\n`, `\t`, `\r`, `\"`, `\uXXXX`)
      stands outside of quotes: `printf("hi\n");` alone on a line is code,
      `He said "hi"\nand left` is escaped, its quotes forgotten.

    Quotes around the whole row, as of a JSON string, are taken off.
    """
    if "\\" not in text or "\n" in text or "\r" in text:
        return text
    body, wrapped = _unwrapped(text)
    if _ESCAPE.sub("", body).count("\\") or not _is_escaped(body, whole=wrapped):
        return text
    quoted = _UNESCAPED_QUOTE.sub(lambda found: '\\"' if found[1] else found[0], body)
    # strict=False: a real tab is no sign of anything.
    return str(json.loads(f'"{quoted}"', strict=False))


def checked_messages(value: object) -> Messages:
    """`value` as messages: {role: str, content: str or list of parts}, in text that was meant.

    Fields that are null, as a parquet struct has them for what a row lacks, are
    left out, since templates ask whether they are defined. Raises BrokenRowError.
    """
    if not isinstance(value, list) or not value:
        raise BrokenRowError("no list of messages")
    found = []
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BrokenRowError("a message without a role")
        kept = {key: field for key, field in message.items() if field is not None}
        content = kept.setdefault("content", "" if kept.get("tool_calls") else None)
        if not isinstance(content, str | list):
            raise BrokenRowError("a message without content")
        if isinstance(content, str):
            kept["content"] = decode_text(content)
        found.append(kept)
    return found


def _parsed(text: str) -> object:
    try:
        # strict=False: real line ends within JSON strings are common, and clear.
        parsed = json.loads(text, strict=False)
        # Encoded twice: the JSON text of a JSON string.
        return json.loads(parsed, strict=False) if isinstance(parsed, str) else parsed
    except (ValueError, RecursionError):
        raise BrokenRowError("no valid JSON") from None


def _unwrapped(text: str) -> tuple[str, bool]:
    r"""(The row without quotes around it, whether it is a whole JSON string).

    With unescaped quotes inside, `"He said "hi"\nand left"` is wrapped, for its
    second quote opens something; `"Hi," he said.\n"Bye."` is not.
    """
    if len(text) < 3 or text[0] != '"' or text[-1] != '"':
        return text, False
    quotes = [found.start(1) for found in _UNESCAPED_QUOTE.finditer(text) if found[1]]
    if quotes == [0, len(text) - 1]:
        return text[1:-1], True
    opens = len(quotes) > 2 and re.search(r"(?:[\s(\[{=:]|\\[nt])$", text[: quotes[1]]) is not None
    return (text[1:-1], False) if opens and quotes[-1] == len(text) - 1 else (text, False)


def _is_escaped(body: str, *, whole: bool) -> bool:
    if whole:
        return _EVIDENCE.search(body) is not None
    outside = _QUOTED.sub(" ", body).replace("\\\\", "  ")
    if _LATEX.search(outside) or _WINDOWS_PATH.search(outside):
        return False
    return _EVIDENCE.search(outside) is not None
