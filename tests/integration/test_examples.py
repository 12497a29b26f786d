"""The examples: each is a sound config whose files are there, and the smallest ends with a card."""

import shutil
from pathlib import Path

import pytest
import yaml

from house import ROOT, House
from quantmill.config import file as config

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_sound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if path.stem == "tasks":
        pytest.importorskip("lm_eval")
    parsed = config.parse(yaml.safe_load(path.read_text()), path.name)
    config.check_files(parsed, path.name, [Path("recipes")])
    assert f"--configfile examples/{path.name}" in path.read_text()


@pytest.mark.parametrize(
    ("name", "goal"), [("mfp4-gguf", None), ("qwopus", None), ("import", "plans"), ("apex", "plans")]
)
def test_an_example_runs(tmp_path: Path, name: str, goal: str | None) -> None:
    house = House.build(tmp_path / "house")
    for folder in ("examples", "tests/data"):
        shutil.copytree(ROOT / folder, house.folder / folder)
    example = f"--configfile=examples/{name}.yaml"
    house.run(*([goal] if goal else []), example, cores=2)
    results = house.folder / "results" / name
    recipes = yaml.safe_load((house.folder / "examples" / f"{name}.yaml").read_text())["recipes"]
    plans = {path.stem for path in results.glob("*/plans/*.json")}
    assert plans == {recipe if isinstance(recipe, str) else recipe["name"] for recipe in recipes}
    if goal is None:
        (card,) = results.glob("*/card/README.md")
        said = {"mfp4-gguf": "nvfp4", "qwopus": "mainline llama.cpp cannot load this file"}
        assert said[name] in card.read_text()
