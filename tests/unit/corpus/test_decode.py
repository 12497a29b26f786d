"""Rows as they are found, and the text that was meant."""

import json

import pytest

from quantmill.corpus.decode import Document, checked_messages, decode, decode_text
from quantmill.corpus.messages import BrokenRowError, Conversation, tools_of


def render(messages, tools):
    said = "".join(f"<{m['role']}>{m['content']}" for m in messages)
    return Document(said if tools is None else f"{json.dumps(tools)}{said}", chat=True)


ESCAPED = {
    r"Hello\nworld": "Hello\nworld",
    r"a\tb\tc": "a\tb\tc",
    r"caf\u00e9 au lait": "café au lait",
    r"a smile \ud83d\ude00 here": "a smile 😀 here",
    r"He said \"hi\" and left": 'He said "hi" and left',
    # Quotes that nobody escaped, beside escapes that somebody did.
    r'He said "hi" to me\nand left': 'He said "hi" to me\nand left',
    r'print("hi")\nprint("bye")': 'print("hi")\nprint("bye")',
    r'a 5" pipe\nand a 6" one': 'a 5" pipe\nand a 6" one',
    # A whole JSON string, with its quotes.
    r'"one\ntwo"': "one\ntwo",
    r'"He said \"hi\" to me\nand left"': 'He said "hi" to me\nand left',
    r'"He said "hi" to me\nand left"': 'He said "hi" to me\nand left',
    # Code that was escaped as it should be: its own escapes come back whole.
    r"int main() {\n  printf(\"hi\\n\");\n}": 'int main() {\n  printf("hi\\n");\n}',
    r"$\\nabla f$\nand $\\theta$": "$\\nabla f$\nand $\\theta$",
    r"in C:\\new\\table\nand on": "in C:\\new\\table\nand on",
    r"Q:\nYes?\nA:\nNo.": "Q:\nYes?\nA:\nNo.",
    "a real\ttab\\nand more": "a real\ttab\nand more",
    r"don't\nwon't": "don't\nwon't",
}

LITERAL = [
    'no backslash, "quotes" and don\'t',
    'int main() {\n  printf("hi\\n");\n  return 0;\n}',
    "first\r\nsecond \\n is literal",
    r'printf("hello\n");',
    r"if (c == '\n') lines++;",
    r"print('a\tb')",
    r'char *s = "a \"quoted\" word";',
    r"The `\n` character ends a line.",
    r"f(rb'\n', L'\t')",
    r"The gradient $\nabla f$ at $\theta$",
    r"\frac{a}{b} \times \beta",
    r"a match of \d+\n in a regular expression",
    r"C:\new\table",
    r"in D:\temp",
    r"a trailing backslash \n and \\ " + "\\",
    r'"Hi," he said; "use \n there"',
    r"\x41\n",
    r"a/b\/c",
]


@pytest.mark.parametrize("row", ESCAPED, ids=range(len(ESCAPED)))
def test_an_escaped_row_becomes_the_text_that_was_meant(row):
    assert decode_text(row) == ESCAPED[row]


@pytest.mark.parametrize("text", LITERAL, ids=range(len(LITERAL)))
def test_text_with_backslashes_of_its_own_stays(text):
    assert decode_text(text) == text


@pytest.mark.parametrize("text", ['one\ntwo "three"\n\\alpha \\n ü 😀', 'a\n"b', "\\\\\n\t\\n"])
def test_what_json_escapes_is_unescaped_exactly(text):
    quoted = json.dumps(text)
    assert decode_text(quoted) == text
    assert decode_text(quoted[1:-1]) == text


def test_what_was_decoded_once_is_not_decoded_again():
    for text in ESCAPED.values():
        if "\n" in text:
            assert decode_text(text) == text


MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]


def test_messages_come_as_a_list_as_json_and_as_json_of_json():
    expected = Document("<user>Hi<assistant>Yes?", chat=True)
    as_json = json.dumps(MESSAGES)
    for value in (MESSAGES, as_json, as_json.encode(), " " + json.dumps(MESSAGES, indent=2)):
        assert decode(value, render) == expected
    assert decode(json.dumps(as_json), render, messages=True) == expected


def test_json_messages_with_real_line_ends_in_their_strings_are_read():
    value = '[{"role": "user", "content": "one\ntwo"}]'
    assert decode(value, render).text == "<user>one\ntwo"


def test_null_fields_of_messages_are_left_out_and_escaped_content_is_decoded():
    result = checked_messages([{"role": "user", "content": r"a\nb", "name": None}])
    assert result == [{"role": "user", "content": "a\nb"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert checked_messages([call]) == [call | {"content": ""}]


def test_text_is_text_and_null_is_empty():
    assert decode("[1, 2]", render) == Document("[1, 2]", chat=False)
    assert decode("häh".encode(), render) == Document("häh", chat=False)
    assert decode(None, render).text == decode(" \n", render, messages=True).text == ""


def test_conversations_of_sharegpt_become_messages():
    shared = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": r"Hi\nthere", "weight": None},
        {"from": "gpt", "value": "Yes?"},
        {"from": "function", "value": "{}"},
        {"from": "Observation", "value": "7"},
    ]
    expected = "<system>Be brief.<user>Hi\nthere<assistant>Yes?<tool>{}<tool>7"
    assert decode(shared, render) == decode(json.dumps(shared), render) == Document(expected, chat=True)
    # data that merely begins as such is text
    flights = '[{"from": "Paris", "to": "Rome"}]'
    assert decode(flights, render) == Document(flights, chat=False)


@pytest.mark.parametrize(
    ("role", "known"),
    [("Human", "user"), ("USER", "user"), ("model", "assistant"), ("critic", "critic"), ("function",) * 2],
)
def test_roles_have_the_names_that_templates_know(role, known):
    assert checked_messages([{"role": role, "content": "x"}])[0]["role"] == known


def test_a_function_call_of_sharegpt_is_a_tool_call():
    (result,) = checked_messages([{"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'}])
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert result == {"role": "assistant", "content": "", "tool_calls": [call]}
    (prose,) = checked_messages([{"from": "function_call", "value": "f(1)"}])
    assert prose == {"role": "assistant", "content": "f(1)"}


@pytest.mark.parametrize("given", ['{"a": 1}', {"a": 1}])
@pytest.mark.parametrize("whole", [True, False])
def test_arguments_are_a_mapping_that_prints_as_json(given, whole):
    calls = [{"function": {"name": "f", "arguments": given}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls if whole else json.dumps(calls)}
    result = checked_messages([message])[0]["tool_calls"][0]["function"]["arguments"]
    assert result == {"a": 1} and f"{result}" == '{"a": 1}' and "x" + result + "y" == 'x{"a": 1}y'
    assert calls[0]["function"]["arguments"] == given


def test_arguments_that_are_no_json_of_a_mapping_stay():
    for given in ("f(", "[1]", ""):
        call = {"name": "f", "arguments": given}
        assert checked_messages([{"role": "assistant", "tool_calls": [call]}])[0]["tool_calls"] == [call]


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("value", "tools"),
    [
        (None, None),
        ("", None),
        ("[]", None),
        ([], None),
        ("a hammer", None),
        (["search"], None),
        ([TOOL], [TOOL]),
        (json.dumps([TOOL]), [TOOL]),
        ([json.dumps(TOOL)], [TOOL]),
        (TOOL, [TOOL]),
    ],
)
def test_tools_are_a_list_of_schemas_or_none(value, tools):
    assert tools_of(value) == tools


def test_a_conversation_is_rendered_with_its_tools():
    expected = json.dumps([TOOL]) + "<user>Hi<assistant>Yes?"
    for tools in ([TOOL], json.dumps([TOOL]).encode()):
        assert decode(Conversation(MESSAGES, tools), render).text == expected
    assert decode(Conversation(MESSAGES, None), render) == decode(MESSAGES, render)
    assert decode(Conversation(b"text", [TOOL]), render) == Document("text", chat=False)


@pytest.mark.parametrize(
    ("value", "messages", "why"),
    [
        (b"\xff\xfe", False, "not UTF-8"),
        (b"CESU \xed\xa0\xbd", False, "not UTF-8"),
        ("caf\udce9", False, "not UTF-8"),
        ("lone \ud83d", False, "with a lone surrogate"),
        (r"lone \ud83d escaped", False, "with a lone surrogate"),
        ("a\0b", False, "with NUL characters"),
        ([{"role": "user", "content": "a\0b"}], False, "with NUL characters"),
        (7, False, "neither text nor messages"),
        ({"a": 1}, False, "neither text nor messages"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "no"), False, "not UTF-8"),
        (BrokenRowError("not valid JSON"), False, "not valid JSON"),
        ([], False, "without messages"),
        (["Hi"], False, "with a message that has no role"),
        ([{"content": "Hi"}], False, "with a message that has no role"),
        ([{"from": "gpt", "value": None}], False, "with a message that has no content"),
        ([{"role": "user", "content": None}], False, "with a message that has no content"),
        ([{"role": "user", "content": 7}], False, "with a message that has no content"),
        ([{"role": "assistant", "tool_calls": "f()"}], False, "not valid JSON"),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], False, "with tool calls that are no list"),
        ('[{"role": "user", "content": "cut o', False, "not valid JSON"),
        ('[{"role": "user", "content": "a "b" c"}]', False, "not valid JSON"),
        ("no messages at all", True, "not valid JSON"),
        ('{"role": "user"}', True, "without messages"),
        ("[" * 100_000, True, "not valid JSON"),
    ],
)
def test_a_broken_row_says_why(value, messages, why):
    with pytest.raises(BrokenRowError) as error:
        decode(value, render, messages=messages)
    assert str(error.value) == why
