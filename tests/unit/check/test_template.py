"""What a chat template takes: a system message, tools; and those that work not at all."""

from __future__ import annotations

import pytest

from quantmill.check.template import BrokenTemplateError, prompt_of, taken_by
from quantmill.corpus.chat import ChatTemplate

PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + PLAIN
WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN
)
WITHOUT_TOOLS = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + PLAIN


@pytest.mark.parametrize(
    ("text", "system", "tools"),
    [
        (PLAIN, "takes", "leaves out"),
        (TOOLS, "takes", "takes"),
        (WITHOUT_SYSTEM, "joined", "leaves out"),
        (WITHOUT_TOOLS, "takes", "refuses"),
        (
            "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
            "joined",
            "leaves out",
        ),
    ],
)
def test_what_a_template_takes(text: str, system: str, tools: str) -> None:
    template = ChatTemplate(text, bos="", eos="")
    assert "What is the capital of France?" in prompt_of(template)
    assert taken_by(template) == {"system": system, "tools": tools}


def test_a_template_that_refuses_a_question() -> None:
    template = ChatTemplate("{{ raise_exception('only for reviewers') }}", bos="", eos="")
    with pytest.raises(BrokenTemplateError, match=r"^only for reviewers$"):
        prompt_of(template)
