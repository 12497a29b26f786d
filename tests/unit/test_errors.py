"""One line, whatever is in it."""

import pytest

from quantmill.errors import QuantmillError


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("no such file",), "no such file"),
        (("no such file", "a/b.gguf"), "a/b.gguf: no such file"),
        (("no such file", "a/b.gguf", "check the path"), "a/b.gguf: no such file; check the path"),
        (("two\nlines", "x", "\tand a tab"), "x: two lines; and a tab"),
    ],
)
def test_message_is_one_line(arguments: tuple[str, ...], line: str) -> None:
    assert str(QuantmillError(*arguments)) == line
