"""What the config and a source that is there tell of `mtp`, before any job runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import DRAFTER
from quantmill.errors import QuantmillError
from quantmill.flow import mtp, naming
from quantmill.flow.inputs import Inputs
from quantmill.flow.paths import Paths
from quantmill.flow.project import Project
from quantmill.flow.targets import Targets

Make = Callable[..., Project]
ROWS = ("source", "Q8_0", "headless")
HEAD = ("models.local.source.path", "mtp.gguf")
ALONE = {"name": "mtp-Q8_0", "base": "Q8_0", "mtp": "only"}


def test_a_source_without_a_head_is_refused_by_the_recipes_place(make: Make) -> None:
    with pytest.raises(QuantmillError, match=r"^--config: recipes\[0\]: mtp: the model has no draft head"):
        mtp.of(make(("recipes.0.mtp", "none")), "local", "plain")


def test_a_source_that_is_yet_to_come_is_not_looked_at(make: Make) -> None:
    project = make(("models.hub.recipes", [{"name": "x", "base": "Q8_0", "mtp": "none"}]))
    assert mtp.of(project, "hub", "x") == "none"


def test_a_type_that_the_engine_lacks_is_refused_by_the_recipes_place(make: Make) -> None:
    project = make(HEAD, ("recipes.3.mtp", {"type": "iq4_ks"}))
    with pytest.raises(QuantmillError, match=r"recipes\[3\]: field mtp.type: engine mainline lacks the type"):
        mtp.of(project, "local", "sized")


def test_of_a_head_alone_nothing_is_measured(make: Make, flow: Callable[[Project], Any]) -> None:
    project = make(HEAD, ("recipes.2", ALONE))
    inputs, targets, specs, cards = flow(project)
    assert isinstance(inputs, Inputs) and isinstance(targets, Targets)
    measured = [file for file in targets.measured("local") if "/mtp-Q8_0/" in file]
    assert measured == [] and "mtp-Q8_0" not in project.rows("local")
    assert any("mtp-Q8_0.gguf" in file for file in targets.quantized("local"))
    assert any("checks/mtp-Q8_0" in file for file in targets.described("local"))
    card = json.loads(cards.card("local"))
    assert len(card["from"]["kld"]) == 1 + 4 and len(card["from"]["quants"]) == 5
    assert json.loads(specs.plan("local", "mtp-Q8_0"))["config"]["mtp"] == "only"


def test_of_a_file_without_the_head_no_drafts_are_measured(make: Make) -> None:
    recipes = ["Q8_0", {"name": "headless", "base": "Q8_0", "mtp": "none"}]
    paths = Paths(make(("models.drafter", DRAFTER | {"recipes": recipes})))
    drafts = {row: any("draft" in Path(file).stem for file in paths.measured("drafter", row)) for row in ROWS}
    assert drafts == {"source": True, "Q8_0": True, "headless": False}


def test_a_head_alone_is_rounded_to_nearest_whatever_the_config_says(make: Make) -> None:
    moments = {"corpus": "calibration", "chunks": 2, "context": 128}
    project = make(HEAD, ("recipes.2", ALONE), ("rounding", "gptq"), ("moments", moments))
    assert project.rounding("local", "plain") == "gptq"
    assert project.rounding("local", "mtp-Q8_0") == "nearest"
    assert "mtp-Q8_0" not in project.beside_nearest("local")


def test_a_head_alone_needs_a_name_by_which_llama_cpp_knows_it(make: Make) -> None:
    def lines(name: str) -> list[str]:
        project = make(HEAD, ("recipes", ["Q8_0", ALONE | {"name": name}]))
        return naming.remarks(project)

    assert lines("mtp-Q8_0") == []
    assert lines("head") == [
        "--config: recipe head: llama-server -hf takes its draft head for a model, and not for the head of "
        "one; call it mtp-head"
    ]


def test_a_file_of_ik_is_served_where_its_server_is_named(make: Make, flow: Callable[[Project], Any]) -> None:
    ik = (HEAD, ("recipes.3.engine", "ik"))
    inputs, targets, specs, cards = flow(make(*ik))
    assert not any("sized/served.json" in file for file in targets.measured("local"))
    assert "served_in_ik" not in json.loads(cards.card("local"))["config"]
    inputs, targets, specs, cards = flow(make(*ik, ("bench.served.ik_server", "other")))
    measured = {file for file in targets.measured("local") if file.endswith("served.json")}
    assert {file.split("/")[-2] for file in measured} >= {"sized", "source-ik", "plain", "source"}
    assert inputs.server("local", "sized") == ["other"] and inputs.server("local", "plain") == ["server"]
    assert inputs.vocabulary("local", "sized") == ["mtp.gguf"] and inputs.vocabulary("local", "plain") == []
    assert json.loads(cards.card("local"))["config"]["served_in_ik"]
    assert json.loads(specs.served("local", "sized"))["from"].keys() == {"model", "server", "vocabulary"}
    assert not any("sized/humaneval.json" in file for file in targets.measured("local"))
