"""Rows as they are found, and the text that was meant."""

import json

import pytest

from quantmill.corpus.decode import BrokenRowError, Document, checked_messages, decode, decode_text


def render(messages):
    return "".join(f"<{m['role']}>{m['content']}" for m in messages)


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
    wanted = Document("<user>Hi<assistant>Yes?", chat=True)
    as_json = json.dumps(MESSAGES)
    for value in (MESSAGES, as_json, as_json.encode(), " " + json.dumps(MESSAGES, indent=2)):
        assert decode(value, render) == wanted
    assert decode(json.dumps(as_json), render, messages=True) == wanted


def test_json_messages_with_real_line_ends_in_their_strings_are_read():
    value = '[{"role": "user", "content": "one\ntwo"}]'
    assert decode(value, render).text == "<user>one\ntwo"


def test_null_fields_of_messages_are_left_out_and_escaped_content_is_decoded():
    found = checked_messages([{"role": "user", "content": r"a\nb", "name": None}])
    assert found == [{"role": "user", "content": "a\nb"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert checked_messages([call]) == [call | {"content": ""}]


def test_text_is_text_and_null_is_empty():
    assert decode("[1, 2]", render) == Document("[1, 2]", chat=False)
    assert decode("häh".encode(), render) == Document("häh", chat=False)
    assert decode(None, render).text == decode(" \n", render, messages=True).text == ""


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        (b"\xff\xfe", False),
        (b"CESU \xed\xa0\xbd", False),
        ("lone \ud83d", False),
        (r"lone \ud83d escaped", False),
        (7, False),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "no"), False),
        ([], False),
        (["Hi"], False),
        ([{"content": "Hi"}], False),
        ([{"role": "user", "content": None}], False),
        ([{"role": "user", "content": 7}], False),
        ('[{"role": "user", "content": "cut o', False),
        ('[{"role": "user", "content": "a "b" c"}]', False),
        ("no messages at all", True),
        ('{"role": "user"}', True),
        ("[" * 100_000, True),
    ],
)
def test_a_broken_row_is_broken(value, messages):
    with pytest.raises(BrokenRowError):
        decode(value, render, messages=messages)
