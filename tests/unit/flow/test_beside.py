"""A projector and its language model: they fit, or are refused; each card names the other's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import models
from models import EMBEDDER, PROJECTOR
from quantmill.errors import QuantmillError
from quantmill.flow import beside, media
from quantmill.flow.project import Project

Make = Callable[..., Project]


def test_each_names_the_others_files(make: Make, files: Path) -> None:
    models.write_projector(files / "fits.gguf", out=256)  # the width of model.gguf
    seer = PROJECTOR | {
        "source": {"path": "fits.gguf"},
        "recipes": ["BF16", "Q8_0"],
        "language_model": "local",
    }
    project = make(("models.seer", seer))
    beside.check(project)
    assert beside.files(project, "local") == ["seer-BF16.gguf", "seer-Q8_0.gguf"]
    assert beside.files(project, "seer") == ["local-plain.gguf"]
    assert beside.files(project, "hub") == []


@pytest.mark.parametrize(
    ("asks", "place"), [("models.seer.publish.repo", "me/local"), ("models.local.publish.repo", "me/seer")]
)
def test_a_projector_is_published_with_its_language_model(
    make: Make, files: Path, flow: Callable[..., tuple[Any, ...]], asks: str, place: str
) -> None:
    """Whichever of both names the other's repository: one entry, whose card tells of both."""
    models.write_projector(files / "fits.gguf", out=256)
    seer = PROJECTOR | {"source": {"path": "fits.gguf"}, "language_model": "local"}
    seer = {key: value for key, value in seer.items() if key != "publish"}
    project = make(("models.seer", seer), (asks, place))
    assert beside.together(project, "local") == ["seer"] and beside.together(project, "seer") == []
    _, targets, _, cards = flow(project)
    published = json.loads(cards.publish())["config"]["models"]
    assert published["local"]["repo"] == published["local"]["together"]["seer"]["repo"] == place
    assert published["seer"]["repo"] is None and "together" not in published["seer"]
    assert json.loads(cards.card("local"))["config"]["together"] == {"seer": ["Q8_0"]}
    assert [Path(file).name for file in targets.together("local")] == [
        *("seer-Q8_0.json", "projector.json", "projector.json", "withheld.json")
    ]
    apart = make(("models.seer", seer))
    assert beside.together(apart, "local") == [] == flow(apart)[1].together("local")


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            PROJECTOR | {"language_model": "local"},
            "--config: models.seer.language_model: seer makes vectors of 96 values, and local reads ones of "
            "256: it is another model's projector; name its own",
        ),
        (
            PROJECTOR | {"language_model": "locl"},
            "--config: models.seer.language_model: no model locl; there are local, hub, packaged, "
            "checkpoint, imported, seer",
        ),
        (
            EMBEDDER | {"language_model": "local"},
            "--config: models.seer.language_model: seer is an embedding model, and no projector; "
            "leave this out",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Make, model: dict, line: str) -> None:
    with pytest.raises(QuantmillError) as raised:
        beside.check(make(("models.seer", model)))
    assert str(raised.value) == line


def test_a_question_needs_a_language_model_that_answers(make: Make) -> None:
    bench = {"projector": {"media": ["picture.png"], "question": "What is this?"}}
    with pytest.raises(QuantmillError) as raised:
        media.question(make(("models.seer", PROJECTOR | {"bench": bench})), "seer")
    assert str(raised.value) == (
        "--config: bench.projector.question: seer has no language_model that could answer; "
        "name it beside source"
    )


def test_what_is_not_there_yet_is_left_to_later(make: Make) -> None:
    beside.check(make(("models.seer", PROJECTOR | {"language_model": "hub"})))
