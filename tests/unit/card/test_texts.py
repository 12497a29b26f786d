"""The publisher's texts: what they may name, where they come on the card, and what is wrong in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantmill.card import texts, write
from quantmill.errors import QuantmillError
from quantmill.judge.results import read

Tree = tuple[Path, dict[str, Any]]


def test_texts_stand_in_their_places_with_what_they_name(kld_tree: Tree) -> None:
    folder, config = kld_tree
    config["card"] |= {
        "about": "I made {{ files }} files of {{ base_model }}; take {{ recommended }}.",
        "credits": "Thanks to **them**.",
        "license_notes": "As {{ license }} says.",
    }
    card = write.render(read(folder, config), config)
    head, tail = card.split("## Which file should I choose?")
    assert "I made 6 files of example/Tiny-Test; take Q5_K_M." in head
    assert "Thanks to **them**." in tail.split("## Credits")[1]
    assert card.rstrip().endswith("## Licence\n\nAs apache-2.0 says.")


def test_every_name_of_the_list_has_a_value(kld_tree: Tree) -> None:
    folder, config = kld_tree
    named = " ".join(f"{name}={{{{ {name} }}}}" for name in texts.VARIABLES)
    config["card"]["about"] = named
    card = write.render(read(folder, config), config)
    for name in texts.VARIABLES:
        assert f"{name}=" in card and f"{name}= " not in card.replace(f"{name}=\n", f"{name}= ")


def test_a_text_without_variables_is_as_it_is() -> None:
    assert texts.render("100 % {sure}, {# yes #}", {}) == "100 % {sure}, {# yes #}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n{{ model", r"why\.md: broken template, line 2: unexpected end of template.*known are model"),
        ("{% if %}", r"why\.md: broken template, line 1"),
        ("{{ modle }}", r"why\.md: broken template: 'modle' is undefined; known are model"),
        ("{{ files.x.y }}", r"broken template: 'int object' has no attribute 'x'"),
        ("{{ ''.__class__.__mro__ }}", r"broken template: access to attribute '__class__'"),
        ("{{ files / 0 }}", r"broken template: division by zero"),
        ("{% include 'x' %}", r"broken template: no loader"),
    ],
)
def test_a_broken_text_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(QuantmillError, match=message) as caught:
        texts.check(text, "why.md")
    assert "\n" not in str(caught.value)
