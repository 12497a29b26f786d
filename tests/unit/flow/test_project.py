"""The project: bad input is refused when it is read; names and files that follow from the config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantmill.config.bench import POOL
from quantmill.errors import QuantmillError
from quantmill.flow.project import Project
from quantmill.formats.types import takes_feedback

LOCAL = "models.local."
OTHER = {"name": "x", "csv": "figures.csv", "source": "there"}
WRONG: list[tuple[str, Any, str]] = [
    (
        LOCAL + "source.path",
        "none.gguf",
        "--config: models.local.source: no such file: none.gguf; check the path",
    ),
    ("sensitivity.types", ["q4_K", "q4_Z"], "--config: field sensitivity.types[1]: unknown type q4_Z"),
    (LOCAL + "card.about", "{{ nothing }}", "--config: models.local.card.about: "),
    (
        LOCAL + "card.same_size",
        [OTHER | {"csv": "lines.txt"}],
        "lines.txt: line 1: unknown column attn_v=q8_0",
    ),
    (
        LOCAL + "card.same_size",
        [{"name": "x", "model": "y"}],
        "--config: models.local.card.same_size: no model y;",
    ),
    ("bench.humaneval.problems", "one.txt", "one.txt: "),
    (LOCAL + "source.path", "imatrix.gguf", "--config: models.local.source: local is an importance matrix"),
    ("recipes.0.template", "none", "--config: recipe plain: no template none.yaml.j2 in recipes or "),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_bad_input_is_one_line(make: Callable[..., Project], path: str, value: Any, message: str) -> None:
    with pytest.raises(QuantmillError) as error:
        make((path, value))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_key_that_is_there_twice_is_refused_by_its_file(
    make: Callable[..., Project], tmp_path: Path
) -> None:
    make()
    (tmp_path / "my.yaml").write_text("models: {}\nmodels: {}\n", encoding="utf-8")
    with pytest.raises(QuantmillError, match=r"my\.yaml: line 2: models is there twice"):
        Project({}, [str(tmp_path / "my.yaml")])


def test_the_names_that_wildcards_take(make: Callable[..., Project]) -> None:
    project = make(("recipes.0.split", {"max": "1 MB"}), ("models.checkpoint.source.keep", False))
    assert project.models == ["local", "hub", "packaged", "checkpoint", "imported"]
    assert project.recipes == {"plain", "ranked", "lines", "sized", "of-memory", "Q8_0", "imported-fit"}
    assert project.row_names == project.recipes | {"source", "source-ik"}
    assert project.size_targeted == {"sized", "of-memory", "imported-fit"}
    assert project.split == {"plain"}
    assert project.exports.keys() == {"checkpoint"}
    assert project.exported == {"nvfp4"}
    assert project.with_imported_imatrix == project.with_imported_sensitivity == {"imported"}
    assert (project.fetched, project.fetched_files) == ({"hub"}, {"model.gguf"})
    assert (project.converted, project.staying) == ({"checkpoint"}, set())
    assert make().staying == {"checkpoint"}
    assert project.published == ["local"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda project: project.recipe("local", "none"), "local has no recipe none; it has plain, ranked"),
        (lambda project: project.calibration("hub"), "hub has no imatrix; give it one under imatrix"),
        (lambda project: project.probes("hub"), "hub has no sensitivity; give it one under sensitivity"),
        (lambda project: project.chunks("hub", "kld"), "hub has no kld; give it one under bench"),
        (lambda project: project.speed("hub"), "hub has no speed; give it one under bench"),
        (lambda project: project.served("hub"), "hub has no served; give it one under bench"),
        (lambda project: project.humaneval("hub"), "hub has no humaneval; give it one under bench"),
        (lambda project: project.tasks("hub"), "hub has no tasks; give it some under bench"),
        (
            lambda project: project.corpus_use("local", "none"),
            "local does not use the corpus none; it uses calibration, tuning, held-out",
        ),
    ],
)
def test_what_a_model_has_not_is_refused(
    make: Callable[..., Project], ask: Callable[[Project], object], message: str
) -> None:
    with pytest.raises(QuantmillError) as error:
        ask(make())
    assert str(error.value).startswith(f"--config: {message}")


def test_files_below_the_working_folder_are_relative(make: Callable[..., Project], files: Path) -> None:
    assert make().source_files("local") == ["model.gguf"]
    assert make((LOCAL + "source.path", str(files / "other.gguf"))).source_files("local") == ["other.gguf"]
    outside = str(files / "packages" / "models_of_a_test" / "model.gguf")
    assert make().source_files("packaged") == [str(Path(outside).relative_to(files))]
    assert make().source_files("hub") == ["results/hub/source/model.gguf"]


def test_engines_decide_the_rows_and_what_generates(make: Callable[..., Project]) -> None:
    assert make().rows("hub") == ["source", "Q8_0"]
    project = make(("models.hub.recipes", [{"name": "k", "template": "ik", "base": "IQ4_K"}]))
    assert project.rows("hub") == ["source", "source-ik", "k"]
    assert [project.generates("hub", row) for row in project.rows("hub")] == [True, False, False]
    assert project.source_row("hub", "k") == "source-ik"


def test_the_users_own_template_comes_first(make: Callable[..., Project]) -> None:
    assert make(("recipes.0.template", "own")).template("local", "plain") == "recipes/own.yaml.j2"
    assert Path(make().template("local", "plain")).is_absolute()


def test_where_a_recipe_stands(make: Callable[..., Project]) -> None:
    assert make().place_of("local", "sized") == "--config: recipes[3]"
    assert make().place_of("imported", "imported-fit") == "--config: models.imported.recipes[0]"


GPTQ = ("recipes.0.rounding", "gptq")


def test_which_files_are_compared_with_the_same_types_rounded_to_nearest(
    make: Callable[..., Project],
) -> None:
    project = make(GPTQ, ("recipes.1.rounding", "gptq"), ("recipes.1.acceptance_test", False))
    assert project.rounding("local", "ranked") == "gptq" and project.rounding("local", "lines") == "nearest"
    assert project.beside_nearest("local") == ["plain"]
    assert (project.with_nearest, make().with_nearest) == ({"plain"}, set())
    assert make(GPTQ, ("bench.kld", None)).beside_nearest("local") == []
    crossed = make(("recipes.0.rounding", "gptaq"))
    assert crossed.beside_nearest("local") == ["plain"]
    assert (crossed.with_cross, project.with_cross) == ({"plain"}, set())
    with pytest.raises(QuantmillError, match="no recipe of hub has rounding: gptq or gptaq; give"):
        project.moments("hub")


def test_the_default_candidates_of_a_budget_of_gptq_all_have_a_grid(make: Callable[..., Project]) -> None:
    sensitivity = {"corpus": "tuning", "chunks": 3, "context": 128}
    fed_back = [("recipes.3.rounding", "gptq"), ("recipes.4.rounding", "gptq")]
    assert make(("sensitivity", sensitivity), GPTQ).candidate_types("local") == list(POOL)
    project = make(("sensitivity", sensitivity), *fed_back)
    crossed = make(("sensitivity", sensitivity), ("recipes.3.rounding", "gptaq"), fed_back[1])
    assert crossed.probe_rounding("local") == "gptq"
    assert (project.probe_rounding("local"), make(GPTQ).probe_rounding("local")) == ("gptq", "nearest")
    types = project.candidate_types("local")
    assert types == [kind for kind in POOL if takes_feedback(kind, "mainline")] and {"q2_K", "q8_0"} <= set(
        types
    )
    message = r"^--config: sensitivity\.types\[1\]: tq2_0 has no grid to which errors can be fed back; leave"
    with pytest.raises(QuantmillError, match=message):
        make(("sensitivity", {**sensitivity, "types": ["q4_K", "TQ2_0"]}), *fed_back)
    with pytest.raises(
        QuantmillError, match=r"^--config: models\.local\.sensitivity\.types\[0\]: tq2_0 has no"
    ):
        make(("models.local.sensitivity", {**sensitivity, "types": ["tq2_0"]}), *fed_back)


def test_gptq_writes_types_of_ik_llama_cpp_too_and_gptaq_does_not(make: Callable[..., Project]) -> None:
    recipe = {"name": "k", "template": "ik", "base": "IQ4_K"}
    project = make(("recipes.0", recipe | {"rounding": "gptq"}))
    assert (project.engine_of("local", "k"), project.rounding("local", "k")) == ("ik", "gptq")
    assert not project.crossed("local", "k")
    message = (
        r"^--config: recipes\[0\]: k is of engine ik, whose files llama\.cpp cannot load; gptaq runs a file "
        r"there to measure what its weights do to others' inputs; set rounding: gptq$"
    )
    with pytest.raises(QuantmillError, match=message):
        make(("recipes.0", recipe | {"rounding": "gptaq"}))
