"""Chat templates, as Hugging Face renders them."""

import datetime

import pytest

from quantmill.corpus.chat import ChatTemplate
from quantmill.corpus.decode import BrokenRowError

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HI = [{"role": "user", "content": "Hi"}]


def rendered(template, messages=HI):
    return ChatTemplate(template, bos="<s>", eos="</s>").render(messages)


def test_a_conversation_is_rendered_without_a_prompt_for_an_answer():
    wanted = "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert rendered(SMOLLM2) == wanted


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>Hi</s>"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{{ ['<ü>'] | tojson }}", '["<ü>"]'),
        ("{{ {'a': 1} | tojson(indent=1) }}", '{\n "a": 1\n}'),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("a {%- generation -%} b {% endgeneration %}c", "ab c"),
    ],
)
def test_the_usual_helpers_are_there(template, wanted):
    assert rendered(template) == wanted


def test_the_date_is_always_the_same():
    found = datetime.datetime.strptime(rendered("{{ strftime_now('%d %b %Y') }}"), "%d %b %Y")
    assert found == datetime.datetime(2024, 7, 26)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_a_row_that_the_template_refuses_or_abuses_is_broken(template):
    with pytest.raises(BrokenRowError, match="the chat template refuses it"):
        rendered(template)


def test_a_template_that_is_no_jinja_is_refused_at_once():
    with pytest.raises(ValueError, match="end of"):
        ChatTemplate("{% if x %}", bos="", eos="")
