"""What a file's chat template takes: a system message, tools; and whether it works at all."""

from __future__ import annotations

from typing import Final

from quantmill.corpus.chat import ChatTemplate
from quantmill.corpus.messages import BrokenRowError, Messages, Tools
from quantmill.errors import QuantmillError
from quantmill.formats.checks import CheckedTemplate
from quantmill.formats.ggufio import Header

QUESTION: Final[Messages] = [{"role": "user", "content": "What is the capital of France?"}]
"""What each file is asked."""

_SYSTEM: Final[Messages] = [{"role": "system", "content": "Answer briefly."}, *QUESTION]
_TOOL: Final = "weather_at_a_place"
_TOOLS: Final[Tools] = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "The weather at a place.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "Its name."}},
                "required": ["place"],
            },
        },
    }
]


class BrokenTemplateError(ValueError):
    """A template that cannot render a single question."""


def template_of(header: Header) -> ChatTemplate | None:
    """A file's chat template; None where it has none. BrokenTemplateError where it is no Jinja."""
    text = header.text("tokenizer.chat_template")
    if text is None:
        return None
    tokens = header.value("tokenizer.ggml.tokens", [])
    special = {}
    for name in ("bos", "eos"):
        number = header.value(f"tokenizer.ggml.{name}_token_id")
        known = isinstance(number, int) and 0 <= number < len(tokens)
        special[name] = str(tokens[number]) if known else ""
    try:
        return ChatTemplate(text, **special)
    except ValueError as error:
        raise BrokenTemplateError(" ".join(str(error).split())) from None


def prompt_of(template: ChatTemplate, question: Messages = QUESTION) -> str:
    """A question as a template has it. BrokenTemplateError where it refuses that."""
    try:
        return template.render(question, answer=True)
    except BrokenRowError as error:
        raise BrokenTemplateError(
            str(error).removeprefix("refused by the chat template ").strip("()")
        ) from None


def refuse_broken(text: str, file: str) -> None:
    """QuantmillError for a user's template that cannot render a question."""
    try:
        prompt_of(ChatTemplate(text, bos="", eos=""))
    except ValueError as error:
        what = f"a chat template that cannot render a question ({' '.join(str(error).split())})"
        raise QuantmillError(what, file, "correct it, or leave it out") from None


def taken_by(template: ChatTemplate) -> CheckedTemplate:
    """What a template that renders a question takes besides."""
    system = "joined" if template.joins_system(_SYSTEM) else "takes"
    try:
        tools = "takes" if _TOOL in template.render(QUESTION, _TOOLS, answer=True) else "leaves out"
    except BrokenRowError:
        tools = "refuses"
    return {"system": system, "tools": tools}  # type: ignore[typeddict-item]
