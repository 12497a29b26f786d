"""The house: imports point down, wings stay small, ctypes stays in the engine."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "workflow" / "quantmill"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each wing may import besides itself and the ground (the modules beside the wings).
BELOW: dict[str, set[str]] = {
    "ground": set(),
    "config": set(),
    "engine": set(),
    "formats": set(),
    "model": {"formats"},
    "check": {"formats", "engine", "model"},
    "imatrix": {"formats", "model"},
    "nvfp4": {"formats", "model"},
    "recipe": {"formats", "engine", "model", "nvfp4"},
    "budget": {"formats", "engine", "model", "recipe"},
    "quantize": {"formats", "engine", "model", "check", "nvfp4", "recipe"},
    "measure": {"formats", "engine", "model", "check", "imatrix", "corpus", "recipe", "quantize"},
    "serve": {"formats", "engine", "model", "corpus", "recipe", "quantize", "measure"},
    "sensitivity": {"formats", "engine", "model", "corpus", "recipe", "quantize", "measure"},
    "corpus": {"formats", "engine", "model"},
    "evaluate": {"formats", "engine", "model", "corpus", "measure"},
    "checkpoint": {"formats", "engine", "model", "corpus", "recipe", "quantize", "measure", "nvfp4"},
    "publish": {"formats", "engine", "model", "recipe", "quantize"},
    "selftest": {"engine"},
    "judge": set(),
    "card": {"judge"},
}


def imported(source: str, module: str) -> set[str]:
    """The dotted names that `source`, the text of `module`, imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*package, *([node.module] if node.module else [])])
            found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return found


def wing(name: str) -> str:
    """The wing of a dotted name within quantmill; `ground` for what stands beside the wings."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in BELOW else "ground"


def wrong_imports(source: str, module: str) -> set[str]:
    """The imports of `module` that point up or sideways, or at the user's config."""
    here = wing(module)
    allowed = BELOW[here] | {here, "ground"}
    ours = {name for name in imported(source, module) if name.split(".")[0] == "quantmill"}
    return {name for name in ours if wing(name) not in allowed}


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    assert wrong_imports(path.read_text(encoding="utf-8"), module_name(path)) == set()


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_ctypes_only_in_the_engine(path: Path) -> None:
    if wing(module_name(path)) != "engine":
        assert "ctypes" not in {
            name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"), module_name(path))
        }


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_is_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_every_folder_is_a_known_wing() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert folders <= set(BELOW)


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
