"""The settings in every spec are of the stage's type."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from models import DRAFTER, EMBEDDER, PROJECTOR
from quantmill.flow.project import Project
from quantmill.formats import settings
from quantmill.formats.report import fault
from quantmill.stages import STAGES, key

TYPES = {key(stage): kind for stage, kind in settings.OF_STAGE.items()}
CHANGES: list[list[tuple[str, object]]] = [
    [],
    [("models.embedder", EMBEDDER), ("models.projector", PROJECTOR), ("models.drafter", DRAFTER)],
    [("publish.sign", "key.pub"), ("publish.verify", "sample")],
    [("recipes.3.size", None), ("recipes.3.bpw", 5.5), ("recipes.3.at_least", {"tg": 20})],
    [("split", {"max": "1 MB"}), ("recipes.3.pin", [{"match": "attn_v", "type": "q8_0"}])],
    [
        (
            "bench.humaneval",
            {"problems": "problems.jsonl", "prompt": "completion", "template": {"think": False}},
        )
    ],
    [("recipes.0.rounding", "gptaq"), ("recipes.3.rounding", "gptq"), ("recipes.4.rounding", "gptq")],
]


def read(specs: dict[str, str]) -> list[dict[str, Any]]:
    """The specs that are no digests."""
    return [json.loads(text) for text in specs.values() if text.startswith("{")]


def test_every_stage_has_settings() -> None:
    assert settings.OF_STAGE.keys() == STAGES.keys()


@pytest.mark.parametrize("changes", CHANGES)
def test_settings_are_of_the_stages_type(
    make: Callable[..., Project],
    all_specs: Callable[[Project], dict[str, str]],
    changes: list[tuple[str, object]],
) -> None:
    specs = read(all_specs(make(*changes)))
    faults = [(spec["stage"], fault(spec["config"], TYPES[spec["stage"]])) for spec in specs]
    assert [each for each in faults if each[1]] == []


def test_every_stage_is_among_them(
    make: Callable[..., Project], all_specs: Callable[[Project], dict[str, str]]
) -> None:
    specs = [spec for changes in CHANGES for spec in read(all_specs(make(*changes)))]
    assert {spec["stage"] for spec in specs} == TYPES.keys()
