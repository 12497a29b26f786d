"""Chats as data sets have them, made into the messages and tools that chat templates expect.

Two forms are common: OpenAI's, {role, content}, and ShareGPT's, {from, value},
with names of its own for the roles.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

Messages = list[dict[str, Any]]
Tools = list[Any]

ROLES: Final = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""The roles that templates know, by the names that data sets give them, in whatever case."""


class BrokenRowError(ValueError):
    """A row that is neither text nor messages, whatever is tried; it says which, as `not UTF-8`."""


class Conversation(NamedTuple):
    """The messages of a row as they were read, and its tools where the data set has such a column."""

    messages: object
    tools: object


class Arguments(dict[str, Any]):
    """The arguments of a tool call: a mapping to templates that go through it, and JSON where it is printed.

    Data sets have them as a mapping or as its JSON; most templates want the
    mapping (`arguments | items`, `arguments | tojson`), some put the JSON
    beside other text (`'...' + arguments`).
    """

    def __init__(self, values: dict[str, Any], text: str | None = None) -> None:
        super().__init__(values)
        self._text = json.dumps(values, ensure_ascii=False) if text is None else text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


def messages_of(value: object) -> Messages:
    """`value` as messages: {role: str, content: str or list of parts} and what else they have.

    Fields that are null, as a parquet struct has them for what a row lacks, are
    left out, since templates ask whether they are defined. Raises BrokenRowError.
    """
    if not isinstance(value, list) or not value:
        raise BrokenRowError("without messages")
    return [_message(message) for message in value]


def tools_of(value: object) -> Tools | None:
    """The tools of a row, a list of schemas or its JSON; None where it has none, or names and prose alone."""
    try:
        value = parsed(value) if isinstance(value, str) else value
        tools = [parsed(tool) if isinstance(tool, str) else tool for tool in _listed(value)]
    except BrokenRowError:
        return None
    return tools if tools and all(isinstance(tool, dict) for tool in tools) else None


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def parsed(text: str) -> Any:
    """The value of JSON text, which may be encoded twice; BrokenRowError where it is none."""
    try:
        # strict=False: real line ends within JSON strings are common, and clear.
        value = json.loads(text, strict=False)
        # Encoded twice: the JSON text of a JSON string.
        return json.loads(value, strict=False) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise BrokenRowError("not valid JSON") from None


def _message(value: object) -> dict[str, Any]:
    fields = value.items() if isinstance(value, dict) else ()
    message = {key: field for key, field in fields if field is not None}
    shared = "role" not in message and "from" in message
    if shared:
        message = {"role": message.pop("from"), "content": message.pop("value", None)} | message
    role = message.get("role")
    if not isinstance(role, str):
        raise BrokenRowError("with a message that has no role")
    message["role"] = "tool" if shared and role == "function" else ROLES.get(role.lower(), role)
    if role == "function_call" and (calls := _written_calls(message.get("content"))):
        message |= {"content": "", "tool_calls": calls}
    if message.get("tool_calls"):
        message["tool_calls"] = _calls(message["tool_calls"])
    content = message.setdefault("content", "" if message.get("tool_calls") else None)
    if not isinstance(content, str | list):
        raise BrokenRowError("with a message that has no content")
    return message


def _written_calls(text: object) -> list[Any] | None:
    """The calls of a ShareGPT message `function_call`: JSON of {name, arguments}, or of a list of them."""
    try:
        value = parsed(text) if isinstance(text, str) else None
    except BrokenRowError:
        return None
    calls = _listed(value)
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        return None
    return [{"type": "function", "function": call} for call in calls]


def _calls(value: object) -> list[Any]:
    calls = parsed(value) if isinstance(value, str) else value
    if not isinstance(calls, list):
        raise BrokenRowError("with tool calls that are no list")
    return [_call(call) for call in calls]


def _call(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    call = {key: _call(field) if key == "function" else field for key, field in value.items()}
    given = call.get("arguments")
    if isinstance(given, dict):
        call["arguments"] = Arguments(given)
    elif isinstance(given, str):
        try:
            values = json.loads(given)
        except (ValueError, RecursionError):
            return call
        if isinstance(values, dict):
            call["arguments"] = Arguments(values, given)
    return call
