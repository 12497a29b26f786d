"""Chat templates, as Hugging Face renders them."""

import datetime

import pytest

from quantmill.corpus.chat import ChatTemplate
from quantmill.corpus.messages import Arguments, BrokenRowError

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
    expected = "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert rendered(SMOLLM2) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>Hi</s>"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{{ ['<ü>'] | tojson }}", '["<ü>"]'),
        ("{{ {'a': 1} | tojson(indent=1) }}", '{\n "a": 1\n}'),
        (
            "{{ {'b': 'ü', 'a': 1} | tojson(true, sort_keys=true, separators=(',', ':')) }}",
            r'{"a":1,"b":"\u00fc"}',
        ),
        ("{{ tools is none }} {{ documents is none }}", "True True"),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("a {%- generation -%} b {% endgeneration %}c", "ab c"),
    ],
)
def test_the_usual_helpers_are_there(template, expected):
    assert rendered(template) == expected


@pytest.mark.parametrize(
    "printed",
    [
        "{{ a | tojson }}",
        "{{ a }}",
        "{{ '' + a }}",
        "{{ a + '' }}",
        "{{ a ~ '' }}",
        "{{ a | string }}",
        "{{ (a if a is string else a | tojson) }}",
        "{{ '{' }}{% for k, v in a | items %}{{ k | tojson }}: {{ v | tojson }}{% endfor %}{{ '}' }}",
    ],
)
def test_arguments_of_a_tool_call_are_printed_however_a_template_does(printed):
    arguments = Arguments({"city": "Köln"})
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": arguments}}]}
    template = "{% set a = messages[0].tool_calls[0].function.arguments %}" + printed
    assert rendered(template, [message]) == '{"city": "Köln"}'


def test_tools_are_given_to_the_template():
    template = ChatTemplate("{{ tools[0].name }}", bos="", eos="")
    assert template.render(HI, [{"name": "f"}]) == "f"


ROLES = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + ROLES
FORGETFUL = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("template", [NO_SYSTEM, FORGETFUL])
def test_a_system_message_is_joined_to_the_first_user_turn_where_there_is_no_role_for_it(template):
    assert rendered(template, [SYSTEM, *HI]) == "<user>Be brief.\nHi"
    answer = {"role": "assistant", "content": "Yes?"}
    assert rendered(template, [SYSTEM, answer]) == "<user>Be brief.<assistant>Yes?"
    assert rendered(template, [SYSTEM]) == "<user>Be brief."
    assert ChatTemplate(template, bos="", eos="").joins_system([SYSTEM, *HI])
    assert not ChatTemplate(template, bos="", eos="").joins_system(HI)


def test_a_system_message_stays_where_the_template_takes_it_or_nothing():
    assert rendered(ROLES, [SYSTEM, *HI]) == "<system>Be brief.<user>Hi"
    with pytest.raises(BrokenRowError, match="never"):
        rendered("{{ raise_exception('never') }}", [SYSTEM, *HI])


EACH = "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
PARTS = "{% for m in messages %}" + EACH + "{% endfor %}"
EITHER = PARTS.replace(EACH, "{% if m.content is string %}{{ m.content }}{% else %}" + EACH + "{% endif %}")


@pytest.mark.parametrize("template", [ROLES, PARTS, EITHER])
def test_content_is_a_text_or_parts_as_the_template_takes_it(template):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    for content, expected in (("one", "one"), (parts, "one\ntwo" if template == ROLES else "onetwo")):
        text = rendered(template, [{"role": "user", "content": content}])
        assert text.removeprefix("<user>") == expected


def test_the_date_is_always_the_same():
    result = datetime.datetime.strptime(rendered("{{ strftime_now('%d %b %Y') }}"), "%d %b %Y")
    assert result == datetime.datetime(2024, 7, 26)


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
    with pytest.raises(BrokenRowError, match=r"^refused by the chat template"):
        rendered(template)


def test_a_template_that_is_no_jinja_is_refused_at_once():
    with pytest.raises(ValueError, match="end of"):
        ChatTemplate("{% if x %}", bos="", eos="")
