"""A Modelfile for Ollama: the model's own chat template, in Go's syntax, and its stop words.

Ollama reads the Jinja template of a GGUF only to recognize it among those that
it knows; any other model would get none at all. So the template is rendered
with placeholders, and the text between them is written in Ollama's form:
`.System`, `.Prompt` and `.Response`, applied to each turn. That is complete for
a template that treats every turn in the same way, which is checked on a longer
conversation. For any other template the Modelfile has no TEMPLATE, and tells so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_SYSTEM, _USER, _ANSWER, _AGAIN = "\x01system\x01", "\x01user\x01", "\x01answer\x01", "\x01again\x01"
_EOS = "\x01eos\x01"
_STOP = re.compile(r"(<[^<>\s]+>|\x01eos\x01)\n*")


@dataclass(frozen=True)
class Chat:
    """The text around each message of a conversation; `system` is the template's own, where it has one."""

    before_system: str
    after_system: str
    before_user: str
    before_answer: str
    after_answer: str
    system: str
    stop: str

    @property
    def template(self) -> str:
        """In Go's syntax, as Ollama applies it to each turn."""
        first = f"{self.before_system}{{{{ .System }}}}{self.after_system}"
        prompt = f"{{{{ .Prompt }}}}{self.before_answer}"
        start = f"{{{{ if .System }}}}{first}{{{{ else }}}}{self.before_user}{{{{ end }}}}"
        return f"{start}{prompt}{{{{ .Response }}}}{self.after_answer}"

    def apply(self, messages: list[tuple[str, str]]) -> str:
        """The prompt of (role, text) pairs, as Ollama makes it: for tests and the check."""
        system, text = "", ""
        for role, content in messages:
            if role == "system":
                system = content
            elif role == "user":
                start = f"{self.before_system}{system}{self.after_system}" if system else self.before_user
                text += start + content + self.before_answer
                system = ""
            else:
                text += content + self.after_answer
        return text


def chat(template: str | None, tokenizer: str = "") -> Chat | None:
    """The template in Ollama's form; None where there is none, or where it treats turns differently.

    `tokenizer` is `tokenizer.ggml.model`: that of SentencePiece (`llama`) ends a text with `</s>`.
    """
    if not template or any(mark in template for mark in ('"""', "\x01")):
        return None
    turns = [("system", _SYSTEM), ("user", _USER), ("assistant", _ANSWER), ("user", _AGAIN)]
    whole, bare = _render(template, turns), _render(template, [("user", _USER)])
    if whole is None or bare is None:
        return None
    parts = re.split("|".join(re.escape(text) for _, text in turns), whole)
    end = _STOP.match(parts[3]) if len(parts) == len(turns) + 1 else None
    if end is None or bare.count(_USER) != 1:
        return None
    before_system, after_system, before_answer = parts[:3]
    first = bare.split(_USER)[0]
    # a template may have a system text of its own, for a conversation without one
    own = first.startswith(before_system) and first.endswith(after_system)
    system = first[len(before_system) : len(first) - len(after_system)] if own else ""
    eos = "</s>" if tokenizer == "llama" else _EOS
    before_user = parts[3][end.end() :]
    fields = (before_system, after_system, before_user, before_answer, end[0], system, end[1])
    texts = [field.replace(_EOS, eos) for field in fields]
    made = Chat(*texts)
    start = [("system", system)] if system else []
    same = [
        (turns, whole),
        ([*start, *turns[1:2]], bare),
        ([*turns, ("assistant", "b"), ("user", "c")], None),
    ]
    for messages, expected in same:
        prompt = expected if expected is not None else _render(template, messages)
        if prompt is None or made.apply(messages) != prompt.replace(_EOS, eos):
            return None
    return None if any("\x01" in part or "{{" in part for part in texts) else made


PARAMETERS: Final = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
}
"""Ollama's names of recommended sampling, by the ends of llama.cpp's keys."""


def modelfile(
    file: str, context: int, facts: Mapping[str, Any], sampling: Mapping[str, Any] | None = None
) -> str:
    """The Modelfile of a GGUF in the folder above it; `facts` are those of model.json, `sampling` is what the
    file recommends.
    """
    form = chat(facts["chat_template"], facts.get("tokenizer") or "")
    lines = [f"FROM ../{file}", f"PARAMETER num_ctx {context}"]
    given = sampling or {}
    lines += [f"PARAMETER {name} {given[key]}" for key, name in PARAMETERS.items() if key in given]
    if form:
        lines += [f'TEMPLATE """{form.template}"""', f'PARAMETER stop "{form.stop}"']
        lines += [f'SYSTEM """{form.system}"""'] if form.system else []
    elif facts["chat_template"]:
        lines.append(_NO_TEMPLATE)
    else:
        lines.append("# The model has no chat template: it continues the text that it is given.")
    return "\n".join([*lines, ""])


_NO_TEMPLATE: Final = (
    "# No TEMPLATE: Ollama's form cannot express the model's own template. Ollama uses its built-in one\n"
    "# where it knows this model; llama.cpp applies the model's own."
)


def _render(template: str, messages: list[tuple[str, str]]) -> str | None:
    """The prompt of the messages, up to where the answer begins; None where the template fails."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals.update(raise_exception=refuse, strftime_now=lambda form: "")
    try:
        return environment.from_string(template).render(
            messages=[{"role": role, "content": text} for role, text in messages],
            add_generation_prompt=True,
            bos_token="",
            eos_token=_EOS,
            tools=None,
        )
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
