"""What files say of a model: the config's words, the card's, and what stays the source's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quantmill.errors import QuantmillError
from quantmill.flow import metadata
from quantmill.flow.project import Project

CARD = {
    "license": "other",
    "license_name": "tiny-licence",
    "license_link": "https://example.org/licence",
    "base_model": "example/Tiny",
    "language": ["en", "de"],
    "tags": ["code"],
    "quantized_by": "me",
}


def test_nothing_is_said_without_the_section(make: Callable[..., Project]) -> None:
    assert metadata.of(make(("models.local.card", CARD)), "local", "plain") == {}


def test_the_cards_words_and_the_configs(make: Callable[..., Project]) -> None:
    given = {"name": "Tiny Test", "size_label": "5.8M", "sampling": {"temp": 0.7, "top_k": 20, "min_p": 0.0}}
    project = make(("models.local.card", CARD), ("models.local.metadata", given))
    assert metadata.of(project, "local", "plain") == {
        "general.name": "Tiny Test",
        "general.size_label": "5.8M",
        "general.license": "other",
        "general.license.name": "tiny-licence",
        "general.license.link": "https://example.org/licence",
        "general.quantized_by": "me",
        "general.languages": ["en", "de"],
        "general.tags": ["code"],
        "general.repo_url": "https://huggingface.co/me/local",
        "general.source.repo_url": "https://huggingface.co/example/Tiny",
        "general.base_model.count": 1,
        "general.base_model.0.name": "Tiny",
        "general.base_model.0.organization": "example",
        "general.base_model.0.repo_url": "https://huggingface.co/example/Tiny",
        "general.sampling.temp": 0.7,
        "general.sampling.top_k": 20,
        "general.sampling.min_p": 0.0,
        "quantize.recipe": "plain",
    }
    alone = make(("models.local.card", CARD), ("models.local.metadata", given | {"card": False}))
    assert not [key for key in metadata.of(alone, "local", "plain") if "license" in key or "base" in key]


def test_a_template_that_fails_is_refused(make: Callable[..., Project]) -> None:
    Path("broken.jinja").write_text("{{ raise_exception('not for you') }}", encoding="utf-8")
    project = make(("metadata", {"chat_template": "broken.jinja"}))
    with pytest.raises(QuantmillError) as error:
        metadata.of(project, "local", "plain")
    assert str(error.value) == (
        "broken.jinja: a chat template that cannot render a question (not for you); correct it, "
        "or leave it out"
    )
    Path("broken.jinja").write_text("{% if %}", encoding="utf-8")
    with pytest.raises(
        QuantmillError, match=r"broken\.jinja: a chat template that cannot render a question \(Exp"
    ):
        metadata.of(make(("metadata", {"chat_template": "broken.jinja"})), "local", "plain")


@pytest.mark.parametrize(
    ("sampling", "line"),
    [
        ({"top_p": 1.5}, "metadata.sampling.top_p"),
        ({"temp": -1.0}, "metadata.sampling.temp"),
        ({"top_k": -2}, "metadata.sampling.top_k"),
        ({"temperature": 1.0}, "unknown field"),
    ],
)
def test_sampling_that_cannot_be_is_refused(
    make: Callable[..., Project], sampling: dict[str, float], line: str
) -> None:
    with pytest.raises(QuantmillError) as error:
        make(("metadata", {"sampling": sampling}))
    assert line in str(error.value) and "\n" not in str(error.value)
