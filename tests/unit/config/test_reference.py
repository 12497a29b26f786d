"""docs/config.md is what the config's models say, and leaves out no field."""

from __future__ import annotations

import re
from pathlib import Path

from quantmill.config import reference
from quantmill.config.file import schema

ROOT = Path(__file__).parents[3]


def test_the_page_is_in_step() -> None:
    written = (ROOT / "docs" / "config.md").read_text("utf-8")
    assert written == reference.reference(), "run: python -m quantmill.config.reference > docs/config.md"


def test_every_model_and_field_has_a_row() -> None:
    sections = re.split(r"^## ", reference.reference(), flags=re.MULTILINE)[1:]
    rows = {
        text.split("\n", 1)[0]: set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) for text in sections
    }
    root = schema()
    assert rows.pop("The file") == set(root["properties"])
    assert rows == {name: set(node["properties"]) for name, node in root["$defs"].items()}


def test_every_link_has_its_heading() -> None:
    page = reference.reference()
    headings = {heading.lower() for heading in re.findall(r"^## (\w+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= headings


def test_types_and_defaults_in_words() -> None:
    page = reference.reference()
    assert '| `max` | size or integer, 1 or more | `"50 GiB"` |' in page
    assert "| `models` | mapping from name to [Model](#model) | **required** |" in page
    assert '| `prompt` | `chat` or `completion` | `"chat"` |' in page


def test_every_field_says_what_it_means() -> None:
    assert [line for line in reference.reference().splitlines() if line.endswith("|  |")] == []
