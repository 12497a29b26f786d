"""Imports point down, without circles; ctypes stays in the engine; docs/imports.md draws them."""

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import imports
from imports import imported, package_of

MODULES = imports.modules()

# What each package may import besides itself and the core (the modules beside the packages).
BELOW: dict[str, set[str]] = {
    "core": set(),
    "formats": set(),
    "config": {"formats"},
    "engine": {"formats"},
    "selftest": {"engine"},
    "grid": {"formats"},
    "model": {"formats", "grid"},
    "nvfp4": {"formats", "model"},
    "imatrix": {"formats", "model"},
    "check": {"corpus", "engine", "formats", "model"},
    "corpus": {"engine", "formats"},
    "recipe": {"engine", "formats", "model", "nvfp4"},
    "budget": {"check", "engine", "formats", "measure", "model", "recipe"},
    "quantize": {"engine", "formats", "grid", "measure", "model", "nvfp4"},
    "measure": {"check", "engine", "formats", "imatrix", "model"},
    "serve": {"engine", "formats", "measure"},
    "sensitivity": {"check", "engine", "formats", "measure", "model", "quantize", "recipe"},
    "evaluate": {"corpus", "engine", "formats", "measure"},
    "checkpoint": {"engine", "formats", "measure", "nvfp4"},
    "publish": {"formats", "quantize"},
    "proof": {"engine", "formats", "model", "quantize", "recipe"},
    "judge": {"formats"},
    "card": {"formats", "judge"},
    "flow": {
        *("budget", "card", "check", "config", "engine", "evaluate"),
        *("formats", "judge", "model", "proof", "quantize", "recipe"),
    },
}


def wrong_imports(source: str, module: str) -> set[str]:
    """The imports of `module` that point up or sideways, or at the user's config."""
    here = package_of(module)
    allowed = BELOW[here] | {here, imports.CORE}
    ours = {name for name in imported(source, module) if name.split(".")[0] == "quantmill"}
    return {name for name in ours if package_of(name) not in allowed}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    assert wrong_imports(MODULES[name].read_text(encoding="utf-8"), name) == set()


def test_no_package_may_import_what_it_does_not() -> None:
    used = {
        name: others - {imports.CORE}
        for name, others in imports.of_packages().items()
        if name != imports.CORE
    }
    assert used == {name: others for name, others in BELOW.items() if name != imports.CORE}


def test_there_is_no_circle() -> None:
    for edges in (imports.of_modules(), imports.of_packages()):
        list(TopologicalSorter(edges).static_order())


def test_a_circle_would_be_seen() -> None:
    edges = imports.of_modules()
    edges["quantmill.errors"] = {"quantmill.store"}
    with pytest.raises(CycleError):
        list(TopologicalSorter(edges).static_order())


def test_the_drawing_is_true() -> None:
    drawn = Path(__file__).parents[2] / "docs" / "imports.md"
    assert drawn.read_text("utf-8") == imports.drawing(), "run: python tests/imports.py > docs/imports.md"


@pytest.mark.parametrize("name", MODULES)
def test_ctypes_only_in_the_engine(name: str) -> None:
    if package_of(name) != "engine":
        assert "ctypes" not in {
            other.split(".")[0] for other in imported(MODULES[name].read_text(encoding="utf-8"), name)
        }


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_at_most_400_lines(name: str) -> None:
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("quantmill.engine.ggml", "from quantmill.model import roles", {"quantmill.model.roles"}),
        ("quantmill.engine.ggml", "from ..recipe.plan import Plan", {"quantmill.recipe.plan.Plan"}),
        (
            "quantmill.card.write",
            "def f():\n    import quantmill.measure.imatrix",
            {"quantmill.measure.imatrix"},
        ),
        ("quantmill.recipe.plan", "from quantmill.config import file", {"quantmill.config.file"}),
        ("quantmill.store", "import quantmill.engine", {"quantmill.engine"}),
        ("quantmill.measure.speed", "from quantmill.engine import mainline", set()),
        ("quantmill.quantize.write", "from quantmill import store\nimport numpy", set()),
    ],
)
def test_the_check_itself_sees_wrong_imports(module: str, source: str, wrong: set[str]) -> None:
    assert wrong <= wrong_imports(source, module)
    assert bool(wrong) == bool(wrong_imports(source, module))
