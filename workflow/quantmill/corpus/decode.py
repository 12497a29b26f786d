r"""The text of a row: escaped text, lists of messages and broken rows are distinguished.

Data sets keep text as it is, as the inside of a JSON string (literal `\n`,
`\u00e9`, `\"`, sometimes with quotes that nobody escaped), or as a list of chat
messages, itself perhaps as JSON. A row is read for what it is, each on its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from quantmill.corpus.messages import (
    BrokenRowError,
    Conversation,
    Messages,
    Tools,
    messages_of,
    parsed,
    tools_of,
)

Render = Callable[[Messages, Tools | None], "Document"]

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
_JSON_MESSAGES = re.compile(
    r'\s*\[\s*\{\s*"(?:role"\s*:|content"\s*:|from"\s*:\s*"(?:system|human|gpt|user|assistant|chatgpt)")'
)


class Document(NamedTuple):
    """The text of one row; `chat`: its control tokens (`<|...|>`) are meant as such.

    `joined`: its system message stands in its first user turn, as the chat
    template has no system role; `cut`: it is the beginning of a longer row.
    """

    text: str
    chat: bool
    joined: bool = False
    cut: bool = False


def decode(value: object, render: Render, *, messages: bool = False) -> Document:
    """The document in one row; empty text for null.

    `value` is str, UTF-8 bytes, None, a list of messages, or a Conversation of
    such a value and its tools; `messages` says that the column holds nothing
    but messages, so that text which is not JSON of them is broken rather than
    text. Raises BrokenRowError, also for a NUL and for a lone surrogate, which no
    UTF-8 can hold.
    """
    given = value if isinstance(value, Conversation) else Conversation(value, None)
    value, tools = _text(given.messages), _text(given.tools)
    if value is None or (isinstance(value, str) and not value.strip()):
        return Document("", chat=False)
    if isinstance(value, str) and (messages or _JSON_MESSAGES.match(value)):
        value = parsed(value)
        if not isinstance(value, list):
            raise BrokenRowError("without messages")
    if isinstance(value, list):
        document = render(checked_messages(value), tools_of(tools))
    elif isinstance(value, str):
        document = Document(decode_text(value), chat=False)
    else:
        raise BrokenRowError("neither text nor messages")
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        # `surrogateescape` has bytes that are no UTF-8 as U+DC80 to U+DCFF
        escaped = "\udc80" <= document.text[error.start] <= "\udcff"
        raise BrokenRowError("not UTF-8" if escaped else "with a lone surrogate") from None
    if "\0" in document.text:
        raise BrokenRowError("with NUL characters")
    return document


def _text(value: object) -> object:
    """Bytes as the text that they are; an error that reading met as a broken row."""
    if isinstance(value, BrokenRowError):
        raise value
    if isinstance(value, UnicodeDecodeError):
        raise BrokenRowError("not UTF-8")
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BrokenRowError("not UTF-8") from None


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
    quoted = _UNESCAPED_QUOTE.sub(lambda match: '\\"' if match[1] else match[0], body)
    # strict=False: a real tab is no sign of anything.
    return str(json.loads(f'"{quoted}"', strict=False))


def checked_messages(value: object) -> Messages:
    """`value` as messages, each with the text that was meant. Raises BrokenRowError."""
    messages = messages_of(value)
    for message in messages:
        if isinstance(message["content"], str):
            message["content"] = decode_text(message["content"])
    return messages


def _unwrapped(text: str) -> tuple[str, bool]:
    r"""(The row without quotes around it, whether it is a whole JSON string).

    With unescaped quotes inside, `"He said "hi"\nand left"` is wrapped, for its
    second quote opens something; `"Hi," he said.\n"Bye."` is not.
    """
    if len(text) < 3 or text[0] != '"' or text[-1] != '"':
        return text, False
    quotes = [match.start(1) for match in _UNESCAPED_QUOTE.finditer(text) if match[1]]
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
