"""A project that has everything a config can ask for, in a folder of its own."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import models
from quantmill.files import write_json
from quantmill.flow import floors
from quantmill.flow.card_specs import CardSpecs
from quantmill.flow.digests import Digests
from quantmill.flow.inputs import Inputs
from quantmill.flow.paths import Paths
from quantmill.flow.project import Project
from quantmill.flow.specs import Specs
from quantmill.flow.targets import Targets
from quantmill.formats.measurements import Divergence
from quantmill.formats.publication import Facts
from quantmill.measures import MEASURES
from reports import complete

ROOT = Path(__file__).parents[3]
CHUNKS = {"chunks": 3, "context": 128}
BENCH: dict[str, Any] = {
    "kld": {"corpus": "held-out", **CHUNKS},
    "perplexity": {"corpus": "held-out", **CHUNKS},
    "speed": {"prompt": 16, "generate": 4, "repetitions": 2},
    "served": {
        "workloads": [{"name": "short", "prompt": 8, "generate": 8}],
        "repetitions": 2,
        "server": "server",
    },
    "humaneval": {"problems": "problems.jsonl"},
    "tasks": {"names": ["everyday"], "include": "tasks"},
}
CONFIG: dict[str, Any] = {
    "models": {
        "local": {"source": {"path": "model.gguf"}, "card": {"license": "mit", "about": "Why."}},
        "hub": {
            "source": {"hf": "me/model", "file": "model.gguf", "revision": "0" * 40},
            "recipes": ["Q8_0"],
            "imatrix": None,
            "sensitivity": None,
            "bench": {},
            "publish": {},
        },
        "packaged": {
            "source": {"package": "models_of_a_test", "file": "model.gguf"},
            "recipes": ["Q8_0"],
            "imatrix": None,
            "sensitivity": None,
            "bench": {},
            "publish": {},
        },
        "checkpoint": {
            "source": {"checkpoint": "checkpoint"},
            "recipes": ["Q8_0", {"name": "nvfp4", "template": "mfp4", "scheme": "W4A4"}],
            "sensitivity": None,
            "bench": {},
            "publish": {},
        },
        "imported": {
            "source": {"path": "model.gguf"},
            "recipes": [{"name": "imported-fit", "template": "budget", "bpw": 6}],
            "imatrix": {"file": "imatrix.gguf"},
            "sensitivity": {"import": "results.csv", "curve": "curve.csv"},
            "bench": {},
            "publish": {},
        },
    },
    "corpora": {
        "calibration": {"sources": [{"name": "one", "path": "one.txt"}]},
        "tuning": {"sources": [{"name": "two", "path": "two.txt"}]},
        "held-out": {"sources": [{"name": "three", "path": "three.parquet"}]},
    },
    "imatrix": {"corpus": "calibration", **CHUNKS},
    "sensitivity": {"corpus": "tuning", **CHUNKS, "types": ["q4_K", "q8_0"]},
    "recipes": [
        {"name": "plain", "base": "Q8_0"},
        {
            "name": "ranked",
            "template": "contrib-dynamic",
            "importance": {
                "imatrix": 1.0,
                "sensitivity": 1.0,
                "scores": {"path": "scores.json", "weight": 2},
            },
        },
        {"name": "lines", "template": "import", "file": "lines.txt", "form": "regex", "base": "Q8_0"},
        {"name": "sized", "template": "budget", "size": "1 MB"},
        {"name": "of-memory", "template": "budget", "memory": {"total": "4 MiB", "context": 128}},
    ],
    "bench": BENCH,
    "publish": {"repo": "me/{model}"},
}


def change(config: dict[str, Any], path: str, value: object) -> None:
    """Set the field at a dotted path; numbers are places in lists."""
    *parents, last = path.split(".")
    here: Any = config
    for part in parents:
        here = here[int(part)] if part.isdecimal() else here.setdefault(part, {})
    here[int(last) if last.isdecimal() else last] = copy.deepcopy(value)


def _measured(folder: Path) -> None:
    """A folder of another model's results."""
    facts = complete(Facts, {"file": folder.name, "bytes": 9, "sha256": "0"})
    write_json(folder / "gguf" / f"{folder.name}-Q4.json", facts)
    statistics = {"mean": 0.1, "error": 0.01, "99.9%": 1.0, "max": 2.0, "median": 0.1, "min": 0.0}
    write_json(folder / "bench" / "Q4" / "kld.json", complete(Divergence, {"kld": statistics}))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the config names, and `other` ones of other contents."""
    folder = tmp_path_factory.mktemp("project")
    data = ROOT / "tests" / "data"
    shutil.copy(data / "tiny-llama.gguf", folder / "model.gguf")
    shutil.copy(data / "tiny-moe.gguf", folder / "other.gguf")
    shutil.copy(data / "tiny-mtp-Q8_0.gguf", folder / "mtp.gguf")
    models.write_bert(folder / "bert.gguf")
    models.write_projector(folder / "mmproj.gguf")
    shutil.copy(data / "llama-imatrix-llama.gguf", folder / "imatrix.gguf")
    shutil.copy(data / "llama-imatrix-llama.dat", folder / "other-imatrix.dat")
    shutil.copytree(ROOT / "examples" / "tiny-checkpoint", folder / "checkpoint")
    shutil.copytree(folder / "checkpoint", folder / "other-checkpoint")
    (folder / "other-checkpoint" / "more.txt").write_text("more", encoding="utf-8")
    shutil.copy(data / "problems.jsonl", folder)
    problems = (data / "problems.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "other.jsonl").write_text("".join(problems[:1]), encoding="utf-8")
    for name in ("one.txt", "two.txt", "three.parquet", "server", "results.csv", "curve.csv", "other"):
        (folder / name).write_text(name, encoding="utf-8")
    for name in ("picture.png", "other.png"):
        (folder / name).write_text(name, encoding="utf-8")
    (folder / "scores.json").write_text("[0.5, 1]", encoding="utf-8")
    (folder / "lines.txt").write_text("attn_v=q8_0", encoding="utf-8")
    (folder / "other-lines.txt").write_text("attn_v=q6_K", encoding="utf-8")
    (folder / "figures.csv").write_text("file,gb,kld\nQ4,0.01,0.05\n", encoding="utf-8")
    (folder / "other.csv").write_text("file,gb,kld\nQ4,0.01,0.06\n", encoding="utf-8")
    (folder / "key.pub").write_text(
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDayCZXjUuXDDPU9nj8BF8/apwKMylNtMFtwej7Yj2k3 test\n",
        encoding="utf-8",
    )
    (folder / "template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}{% endfor %}", encoding="utf-8"
    )
    (folder / "words.md").write_text("Words.", encoding="utf-8")
    for name in ("tasks", "other-tasks"):
        (folder / name).mkdir()
        (folder / name / "task.yaml").write_text(name, encoding="utf-8")
    own = folder / "recipes"
    own.mkdir()
    shutil.copy(ROOT / "recipes" / "preset.yaml.j2", own / "own.yaml.j2")
    (own / "own.yaml.j2").open("a", encoding="utf-8").write("{# mine #}")
    for name in ("measured", "other-measured"):
        _measured(folder / name)
    # Packages that need not be installed.
    for package in ("models_of_a_test", "other_models", "lm_eval"):
        (folder / "packages" / package).mkdir(parents=True)
        (folder / "packages" / package / "__init__.py").touch()
    shutil.copy(data / "tiny-llama.gguf", folder / "packages" / "models_of_a_test" / "model.gguf")
    shutil.copy(data / "tiny-moe.gguf", folder / "packages" / "models_of_a_test" / "other.gguf")
    shutil.copy(data / "tiny-moe.gguf", folder / "packages" / "other_models" / "model.gguf")
    metadata = folder / "packages" / "lm_eval-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lm-eval\nVersion: 1.0\n", encoding="utf-8"
    )
    return folder


@pytest.fixture
def make(files: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Project]:
    """The project of the config with fields changed: (dotted path, value) pairs."""
    monkeypatch.chdir(files)
    monkeypatch.syspath_prepend(str(files / "packages"))
    monkeypatch.setattr(Digests, "engine", lambda self, name="mainline": f"the engine {name}")

    def made(*changes: tuple[str, object]) -> Project:
        config = copy.deepcopy(CONFIG)
        for path, value in changes:
            change(config, path, value)
        return Project(config)

    return made


class Ancient(str):
    """A file whose time does not count."""


@pytest.fixture
def flow() -> Callable[[Project], tuple[Inputs, Targets, Specs, CardSpecs]]:
    """What the rules ask, of a project."""
    return flow_of


def flow_of(project: Project) -> tuple[Inputs, Targets, Specs, CardSpecs]:
    """What the rules ask, of a project."""
    inputs = Inputs(Paths(project), lambda files: [Ancient(file) for file in files])
    targets = Targets(inputs)
    specs = Specs(Digests(project))
    return inputs, targets, specs, CardSpecs(specs, targets)


@pytest.fixture
def all_specs() -> Callable[[Project], dict[str, str]]:
    """The text of every spec of a project, by its method and the names that it is of."""
    return specs_of


def specs_of(project: Project) -> dict[str, str]:
    """The text of every spec, by its method and the names that it is of."""
    _, _, specs, cards = flow_of(project)
    config = project.config
    texts: dict[str, str] = {}

    def note(owner: object, method: str, *names: str) -> None:
        texts[" ".join([method, *names])] = getattr(owner, method)(*names)

    for model in project.models:
        for method in ("source", "manifest", "check"):
            note(specs, method, model)
        for corpus in config.corpora_of(model):
            note(specs, "corpus", model, corpus)
        if config.imatrix_of(model):
            note(specs, "imatrix", model)
        if config.moments_of(model):
            note(specs, "moments", model)
        for name in project.beside_nearest(model):
            note(specs, "nearest", model, name)
            note(specs, "nearest_kld", model, name)
        for name in filter(lambda name: project.crossed(model, name), config.recipes_of(model)):
            note(specs, "gptq", model, name)
            note(specs, "cross", model, name)
        if config.sensitivity_of(model):
            note(specs, "sensitivity", model)
            note(cards, "sensitivity_plot", model)
        if model in floors.models(project):
            note(specs, "speeds", model)
        for name, recipe in config.recipes_of(model).items():
            if recipe.size_targeted:
                note(specs, "allocated", model, name)
            if recipe.size_targeted and config.probes_of(model):
                note(specs, "feasibility", model, name)
            note(specs, "plan", model, name)
            note(specs, "quantized", model, name)
            note(specs, "checked", model, name)
        for measure in MEASURES.values():
            if getattr(config.bench_of(model), measure.name) is not None:
                for row in project.rows(model):
                    if Paths(project).takes(model, row, measure):
                        note(specs, measure.name, model, row)
        if config.recipes_of(model):
            note(specs, "memory", model)
            note(cards, "card", model)
            note(cards, "lock", model)
            if config.publish_of(model).verify:
                note(cards, "verified", model)
            if config.publish_of(model).sign:
                note(cards, "signature", model)
        if config.repository_of(model):
            note(cards, "parts", model)
    for model in project.fetched:
        note(specs, "fetch", model, "model.gguf")
    for model in project.converted:
        note(specs, "convert", model)
    for model, recipes in project.exports.items():
        for recipe in recipes:
            note(cards, "export", model, recipe)
            note(cards, "checkpoint_card", model, recipe)
        if config.calibration_of(model):
            note(specs, "activations", model)
    if project.published:
        note(cards, "publish")
    note(cards, "verify")
    return texts
