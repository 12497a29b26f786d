"""A model's own chat template: messages in, the text it was trained on out."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

from quantmill.corpus.decode import BrokenRowError, Messages

# What `strftime_now` calls now: a corpus must not change with the day it is built on.
# The date is the one that Llama 3's template itself falls back on.
_TODAY = datetime.datetime(2024, 7, 26)
_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


class ChatTemplate:
    """A Jinja chat template with the helpers that Hugging Face's `apply_chat_template` gives it.

    Sandboxed, since templates come with downloaded models. `bos` and `eos` are
    the texts of those tokens. Raises ValueError where the template is no Jinja.
    """

    def __init__(self, template: str, *, bos: str, eos: str) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _TODAY.strftime}
        self._special = {"bos_token": bos, "eos_token": eos}
        try:
            # `{% generation %}` marks the assistant's part for training; here it is a block like any.
            self._template = environment.from_string(_GENERATION.sub(_plain_block, template))
        except TemplateError as error:
            raise ValueError(str(error)) from None

    def render(self, messages: Messages, *, answer: bool = False, **variables: Any) -> str:
        """The conversation as text; with `answer` up to where the model's answer begins. BrokenRowError.

        `variables` are what this template knows besides, such as `enable_thinking`.
        """
        given = variables | {"messages": messages, "add_generation_prompt": answer}
        try:
            return self._template.render(**given, **self._special)
        except Exception as error:  # a template may raise anything over a row it was not made for
            raise BrokenRowError(f"the chat template refuses it: {error}") from None


def _plain_block(found: re.Match[str]) -> str:
    return f"{{%{found[1]} {'endif' if found[2] else 'if true'} {found[3]}%}}"


def _to_json(value: Any, **options: Any) -> str:
    """As Hugging Face has it: Jinja's own escapes HTML."""
    return json.dumps(value, **({"ensure_ascii": False} | options))


def _raise_exception(message: str) -> None:
    raise ValueError(message)
