"""A model's own chat template: messages in, the text it was trained on out."""

from __future__ import annotations

import datetime
import json
import re
from functools import cached_property
from typing import Any, Final

from quantmill.bounded import SmallNumbers, bounded
from quantmill.corpus.messages import BrokenRowError, Messages, Tools
from quantmill.errors import QuantmillError

# What `strftime_now` calls now: a corpus must not change with the day it is built on.
# The date is the one that Llama 3's template itself falls back on.
_TODAY = datetime.datetime(2024, 7, 26)
_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
_PROBE: Final = "quantmill-probe"
_QUESTION: Final[Messages] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
_BOUNDED: Final = "the chat template", "a row", "choose a column of plain text"
_REASON_CHARACTERS: Final = 120


class ChatTemplate:
    """A Jinja chat template with the helpers that Hugging Face's `apply_chat_template` gives it.

    Sandboxed, since templates come with downloaded models. `bos` and `eos` are
    the texts of those tokens. Raises ValueError where the template is no Jinja.

    What a template cannot take is brought into the form that it can, as
    llama.cpp does: a system message is joined to the first user turn where there
    is no system role, and content is made a text or a list of parts.
    """

    def __init__(self, template: str, *, bos: str, eos: str) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Sandbox(SmallNumbers, ImmutableSandboxedEnvironment):
            """With the arithmetic of small numbers."""

        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _TODAY.strftime}
        self._special = {"bos_token": bos, "eos_token": eos}
        try:
            # `{% generation %}` marks the assistant's part for training; here it is a block like any.
            with bounded(*_BOUNDED):
                self._template = environment.from_string(_GENERATION.sub(_plain_block, template))
        except (TemplateError, MemoryError, RecursionError) as error:
            raise ValueError(str(error) or type(error).__name__) from None

    def render(
        self, messages: Messages, tools: Tools | None = None, *, answer: bool = False, **variables: Any
    ) -> str:
        """The conversation as text; with `answer` up to where the model's answer begins. BrokenRowError.

        `variables` are what this template knows besides, such as `enable_thinking`.
        """
        if self.joins_system(messages):
            messages = _joined(messages)
        if any(isinstance(message["content"], list) for message in messages) and self._text_alone:
            messages = [message | {"content": _as_text(message["content"])} for message in messages]
        elif self._parts_alone:
            messages = [message | {"content": _as_parts(message["content"])} for message in messages]
        return self._render(messages, tools, answer, variables)

    def joins_system(self, messages: Messages) -> bool:
        """Whether the first message is the system's, and joined to the first user turn."""
        return messages[0]["role"] == "system" and self._no_system

    def _render(
        self, messages: Messages, tools: Tools | None, answer: bool, variables: dict[str, Any]
    ) -> str:
        # Templates ask whether tools and documents are None, as those without any are to transformers.
        given = {"tools": tools, "documents": None} | variables
        given |= {"messages": messages, "add_generation_prompt": answer}
        try:
            with bounded(*_BOUNDED):
                return self._template.render(**given, **self._special)
        except QuantmillError:  # a row that takes so long is not the last
            raise
        except Exception as error:  # a template may raise anything over a row it was not made for
            why = " ".join(str(error).split())[:_REASON_CHARACTERS]
            raise BrokenRowError(f"refused by the chat template ({why})") from None

    @cached_property
    def _no_system(self) -> bool:
        """Whether the template refuses a system message or leaves it out, and takes the chat without."""
        return not self._shows([{"role": "system", "content": _PROBE}, *_QUESTION]) and self._takes(_QUESTION)

    @cached_property
    def _text_alone(self) -> bool:
        """Whether the template takes content as a text, and a list of parts not."""
        return self._shows(_of_user(_PROBE)) and not self._shows(_of_user(_as_parts(_PROBE)))

    @cached_property
    def _parts_alone(self) -> bool:
        """Whether the template takes content as a list of parts, and a text not."""
        return self._shows(_of_user(_as_parts(_PROBE))) and not self._shows(_of_user(_PROBE))

    def _shows(self, messages: Messages) -> bool:
        """Whether the probe's text comes out, and not as a list is printed."""
        try:
            text = self._render(messages, None, False, {})
        except BrokenRowError:
            return False
        return _PROBE in text and "'type'" not in text

    def _takes(self, messages: Messages) -> bool:
        try:
            return bool(self._render(messages, None, False, {}))
        except BrokenRowError:
            return False


def _of_user(content: object) -> Messages:
    return [{"role": "user", "content": content}]


def _joined(messages: Messages) -> Messages:
    """The system message, a line before the user's that follows; a user's of its own where none does."""
    system, *rest = messages
    if not rest or rest[0]["role"] != "user":
        return [system | {"role": "user"}, *rest]
    first = rest[0]
    contents = system["content"], first["content"]
    if all(isinstance(content, str) for content in contents):
        content: object = "\n".join(contents)
    else:
        content = [part for content in contents for part in _as_parts(content)]
    return [first | {"content": content}, *rest[1:]]


def _as_parts(content: object) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _as_text(content: object) -> object:
    """Parts that are all text as one, a line each."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    known = [text for text in texts if isinstance(text, str)]
    return "\n".join(known) if len(known) == len(texts) else content


def _plain_block(match: re.Match[str]) -> str:
    return f"{{%{match[1]} {'endif' if match[2] else 'if true'} {match[3]}%}}"


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face has it: Jinja's own escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise ValueError(message)
