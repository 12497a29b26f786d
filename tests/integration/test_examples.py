"""The examples: each is a sound config whose files are there, and the smallest ends with a card."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import grids
import headers
from checkout import ROOT, Checkout
from quantmill.config import file as config
from quantmill.config.recipe import BudgetRecipe

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml")) + sorted((ROOT / "examples" / "real").glob("*.yaml"))
RUN = [
    ("mfp4-gguf", None),
    ("qwopus", None),
    ("import", "plans"),
    ("apex", "plans"),
    ("real/darwin-28b-coder", "plans"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with the examples, the models and the headers that they are of."""
    checkout = Checkout.build(tmp_path_factory.mktemp("examples") / "checkout")
    for folder in ("examples", "tests/data"):
        shutil.copytree(ROOT / folder, checkout.folder / folder)
    headers.main(checkout.folder / "results" / "headers")
    grids.write(checkout.folder / "results" / "grids" / "tiny-qat.gguf")
    return checkout


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "examples").with_suffix(""))


@pytest.fixture(autouse=True)
def needed(request: pytest.FixtureRequest) -> None:
    """What an example needs beyond the base environment."""
    if "tasks" in request.node.name:
        pytest.importorskip("lm_eval")


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_an_example_is_sound(checkout: Checkout, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout.folder)
    parsed = config.parse(yaml.safe_load(path.read_text(encoding="utf-8")), path.name)
    config.check_files(parsed, path.name, [Path("recipes")])
    assert f"--configfile examples/{name_of(path)}.yaml" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name_of(p) for p in EXAMPLES if name_of(p) not in dict(RUN)])
def test_an_example_can_be_run(checkout: Checkout, name: str) -> None:
    goal = ["plans"] if name.startswith("real/") else []
    due = checkout.due(*goal, f"--configfile=examples/{name}.yaml")
    last = {"tabulate_memory"} if goal else {"export_checkpoint MFP4"} if name == "mfp4" else {"write_card"}
    assert last & due or any(job.startswith("write_card") for job in due if not goal)


@pytest.mark.parametrize(("name", "goal"), RUN)
def test_an_example_runs(checkout: Checkout, name: str, goal: str | None) -> None:
    checkout.run(*([goal] if goal else []), f"--configfile=examples/{name}.yaml", cores=1)
    example = yaml.safe_load((checkout.folder / "examples" / f"{name}.yaml").read_text("utf-8"))
    ((model, _),) = example["models"].items()
    results = checkout.folder / example["results"] / model
    plans = {path.stem for path in results.glob("plans/*.json")}
    assert plans == {recipe if isinstance(recipe, str) else recipe["name"] for recipe in example["recipes"]}
    if name == "apex":  # all its profiles are told apart, which takes layers enough
        sizes = {json.loads(path.read_text("utf-8"))["tensor_bytes"] for path in results.glob("plans/*.json")}
        assert len(sizes) == len({plan.removeprefix("APEX-").removeprefix("I-") for plan in plans}) == 6
    if goal is None:
        message = {"mfp4-gguf": "nvfp4", "qwopus": "mainline llama.cpp cannot load this file"}
        assert message[name] in (results / "card" / "README.md").read_text("utf-8")
    if name == "real/darwin-28b-coder":
        plan = json.loads((results / "plans" / "fit-12.92GiB.json").read_text("utf-8"))
        assert 0 < 12.92 * 2**30 - plan["file_bytes"] < 2**20
        assert plan["bpw"] == pytest.approx(4.126, rel=0.002)
        # what was fitted to a device's memory fits it, at the context and with the cache that were asked for
        fits = json.loads((results / "memory.json").read_text("utf-8"))["recipes"]["fit-16GB"]["fits"]
        assert {"total_bytes": 16 << 30, "cache": "q8_0", "context": 32768} in fits
        assert (checkout.folder / "results" / "headers" / "qwen3.6-27b.gguf").stat().st_size < 12_000_000


def test_the_files_of_the_default_config_are_a_ladder(checkout: Checkout) -> None:
    """Each is smaller than its source and of the types it is named after; a fit is of its preset's size."""
    text = (ROOT / "config.yaml").read_text("utf-8")
    (checkout.folder / "default.yaml").write_text(text, encoding="utf-8")
    default = config.parse(yaml.safe_load(text))
    plans = {
        (model, name): f"results/{model}/plans/{name}.json"
        for model in default.models
        for name, recipe in default.recipes_of(model).items()
        if not isinstance(recipe, BudgetRecipe)
    }
    manifests = [f"results/{model}/model.json" for model in default.models]
    checkout.run(*plans.values(), *manifests, "--configfile=default.yaml", cores=1)
    read = {key: json.loads((checkout.folder / path).read_text("utf-8")) for key, path in plans.items()}
    for model, manifest in zip(default.models, manifests, strict=True):
        source = json.loads((checkout.folder / manifest).read_text("utf-8"))
        sizes = [plan["file_bytes"] for (of, _), plan in read.items() if of == model]
        assert [source["bytes"], *sizes] == sorted({source["bytes"], *sizes}, reverse=True)
    first = next(iter(default.models))
    assert not any(plan["fallbacks"] or plan["requantized"] for (of, _), plan in read.items() if of == first)
    fits = [recipe for recipe in default.recipes_of(first).values() if isinstance(recipe, BudgetRecipe)]
    for fit in fits:
        preset = read[first, fit.name.removeprefix("fit-")]
        assert fit.budget == {"size": preset["file_bytes"]}
    assert len(fits) == 2
