"""A cap that is too small for a config is said before a run starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantmill.files import write_json
from quantmill.flow import cap
from quantmill.flow.project import Project
from quantmill.formats.allocation import Plan
from quantmill.formats.moments import Moments
from reports import complete

GIB = 1 << 30


@pytest.fixture
def own(make: Callable[..., Project], tmp_path: Path) -> Callable[..., Project]:
    """A project with results of its own."""
    return lambda *changes: make(("results", str(tmp_path)), *changes)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is on another file system than the results."""
    monkeypatch.setattr(cap, "_device", lambda folder: str(folder).endswith(".store"))


def planned(project: Project, recipe: str, size: int) -> None:
    path = project.results / "local" / "plans" / f"{recipe}.json"
    write_json(path, complete(Plan, {"file_bytes": size}))


def test_a_config_whose_files_are_on_the_store_s_file_system_needs_no_room(
    own: Callable[..., Project],
) -> None:
    project = own(("store", {"max": 1}))
    planned(project, "Q8_0", 3 * GIB)
    assert cap.warning(project) is None


def test_what_files_on_another_file_system_need(own: Callable[..., Project], elsewhere: None) -> None:
    project = own(("store", {"max": "2 GiB"}))
    assert cap.warning(project) is None
    planned(project, next(iter(project.config.recipes_of("local"))), 3 * GIB)
    line = cap.warning(project)
    assert line is not None
    assert "2.00 GiB for the store, and what this config keeps there may be 3.0" in line
    assert line.endswith("beyond the cap work is done again: set `store: {max: 4 GiB}`")
    assert cap.warning(own(("store", {"max": "4 GiB"}))) is None


def test_what_has_no_plan_is_estimated_by_its_source(own: Callable[..., Project], elsewhere: None) -> None:
    project = own(("store", {"max": 1}))
    (source,) = project.source_files("local")
    quarter = Path(source).stat().st_size // 4
    recipes = len(project.config.recipes_of("local"))
    assert quarter and cap.warning(project) is not None
    assert cap.warning(own(("store", {"max": quarter * recipes - 1}))) is not None


@pytest.mark.parametrize(("rounding", "copies"), [("gptq", 1), ("gptaq", 2)])
def test_what_error_feedback_needs_on_any_file_system(
    own: Callable[..., Project], rounding: str, copies: int
) -> None:
    project = own(("recipes.0.rounding", rounding), ("store", {"max": "1 GiB"}))
    recipe = next(iter(project.config.recipes_of("local")))
    planned(project, recipe, 2 * GIB)
    report: dict[str, Any] = complete(Moments, {"bytes": GIB})
    write_json(project.results / "local" / "moments.json", report)
    line = cap.warning(project)
    assert line is not None and f"may be {2 * copies + 1}.00 GiB" in line


def test_the_file_system_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert cap._device(tmp_path / "not" / "there") == tmp_path.stat().st_dev
    assert cap._device(Path("nowhere")) == Path().stat().st_dev
