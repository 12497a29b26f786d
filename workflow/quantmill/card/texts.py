"""The publisher's own texts on the card: markdown that may name what was built.

They are Jinja templates, in a sandbox because configs are passed around. A
broken one is refused before any work starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from quantmill.errors import QuantmillError

VARIABLES: Final[dict[str, Any]] = {
    "model": "x",
    "title": "x",
    "base_model": "x",
    "license": "x",
    "source": "x",
    "architecture": "x",
    "parameters": 1,
    "files": 1,
    "largest": "x",
    "smallest": "x",
    "recommended": "x",
}
"""What a text may name, each with a value of its type for the check."""

FIELDS: Final = ("about", "credits", "license_notes")
"""The fields of the card that are such texts."""


def check(text: str, where: str) -> None:
    """Refuse a text that cannot be rendered: broken syntax, an unknown name, what the sandbox forbids."""
    render(text, VARIABLES, where)


def render(text: str, values: Mapping[str, Any], where: str = "") -> str:
    """The text with the values of `VARIABLES` in their places; as it is where it names none."""
    if "{{" not in text and "{%" not in text:
        return text
    from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
    from jinja2.sandbox import SandboxedEnvironment

    cure = f"known are {', '.join(VARIABLES)}; a brace pair that is meant as such is {{{{ '{{{{' }}}}"
    try:
        return SandboxedEnvironment(undefined=StrictUndefined).from_string(text).render(values)
    except TemplateSyntaxError as error:
        raise QuantmillError(f"broken template, line {error.lineno}: {error.message}", where, cure) from None
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise QuantmillError(f"broken template: {error}", where, cure) from None
