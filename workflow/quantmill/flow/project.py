"""The project: the user's config, checked before any work starts, and what follows from it alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from quantmill.card import texts
from quantmill.check import kind
from quantmill.config import file as user
from quantmill.config.bench import HumanEval, Probes, Served, Speed, Tasks
from quantmill.config.card import Card
from quantmill.config.corpora import Calibration, Chunks, ImportedImatrix
from quantmill.config.mtp import whole
from quantmill.config.recipe import BudgetRecipe, ImportedSensitivity, Recipe
from quantmill.config.refusal import check_yaml
from quantmill.config.source import checkpoints, exports, of_ggufs
from quantmill.errors import QuantmillError
from quantmill.evaluate import problems
from quantmill.flow.once import once
from quantmill.formats.types import NO_GRID, takes_feedback
from quantmill.judge import same_size
from quantmill.model.digests import Memo
from quantmill.recipe import interchange, render
from quantmill.recipe.rules import known_type

ROOT: Final = Path(__file__).parents[3]
"""The repository: the templates of recipes and the environments lie in it."""

SOURCES: Final = {"source": "mainline", "source-ik": "ik"}
"""The rows of the bench that are the source itself, and their engines."""

_UNDER_BENCH: Final = "give it one under bench"

T = TypeVar("T")


class Project:
    """The config, its folders, and questions about its models that need no digest.

    `given` is the whole config; `config` is about GGUFs alone: those given, and
    those that checkpoints are converted to, if only (then without a recipe) to
    calibrate activations. `exports` are the recipes that make a checkpoint.
    `file` names the config in errors. QuantmillError for the first thing that
    is wrong in it.
    """

    def __init__(self, config: Mapping[str, Any], files: Sequence[str] = (), *, confirmed: bool = False):
        files = [os.path.relpath(file) for file in files]
        self.file = " + ".join(files) or "--config"
        for file in files:
            check_yaml(Path(file))
        self.confirmed = confirmed
        # The user's own templates come before the workflow's.
        self.templates = [Path("recipes"), ROOT / "recipes"]
        self.given = user.parse(config, self.file)
        user.check_files(self.given, self.file, self.templates)
        self.config = of_ggufs(self.given)
        self.exports = exports(self.given)
        self.checkpoints = checkpoints(self.given.models)
        self.results = Path(self.config.results)
        self.store = self.config.store_path
        self.specs = self.results / ".specs"  # those too long for a command line
        self.memo = Memo.of_project(self.store)
        self.models = list(self.config.models)
        self.with_recipes = [model for model in self.models if self.config.recipes_of(model)]
        self.unchecked = self._check_kinds()
        for model in self.models:
            self._check_settings(model)

    # --- checks ---------------------------------------------------------------

    def _check_kinds(self) -> dict[str, list[kind.Evaluation]]:
        """Refuse what a model's kind cannot have; the requests of those whose file is yet to be made."""
        unchecked = {}
        for model in self.models:
            requests = [kind.Evaluation(*one) for one in self.config.requested_of(model)]
            if not kind.refuse_early(self.config.source_files(model)[0], model, requests, self.file):
                unchecked[model] = requests
        return unchecked

    def _check_settings(self, model: str) -> None:
        bench, card = self.config.bench_of(model), self.card(model)
        if bench.humaneval is not None:
            problems.read(bench.humaneval.file())
        if self.config.probes_of(model) is not None:
            self.candidate_types(model)
        for recipe in self.config.recipes_of(model):
            if self.crossed(model, recipe) and self.engine_of(model, recipe) != "mainline":
                what = (
                    f"{recipe} is of engine ik, whose files llama.cpp cannot load; "
                    "gptaq runs a file there to measure what its weights do to others' inputs"
                )
                raise QuantmillError(what, self.place_of(model, recipe), "set rounding: gptq")
        for field, (where, text) in card.words.items():
            texts.check(text, f"{self.file}: models.{model}.card.{where}" if where == field else where)
        for other in card.same_size:
            if other.model is None:
                same_size.read_competitor(Path(other.results or other.csv or ""))
            elif other.model not in self.models:
                where = f"{self.file}: models.{model}.card.same_size"
                raise QuantmillError(f"no model {other.model}", where, f"there are {', '.join(self.models)}")

    def _required(self, value: T | None, what: str, cure: str) -> T:
        if value is None:
            raise QuantmillError(what, self.file, cure)
        return value

    # --- names, for the wildcards of rules ------------------------------------

    @property
    def recipes(self) -> set[str]:
        """The recipes of all models."""
        return {name for _, name in self._all_recipes()}

    @property
    def row_names(self) -> set[str]:
        """The rows of the benches of all models."""
        return self.recipes | SOURCES.keys()

    @property
    def size_targeted(self) -> set[str]:
        """The recipes whose types are computed; all others are rendered from a template."""
        return {name for model, name in self._all_recipes() if self.recipe(model, name).size_targeted}

    @property
    def split(self) -> set[str]:
        """The recipes whose files are split."""
        return {name for model, name in self._all_recipes() if self.split_of(model, name)}

    def _all_recipes(self) -> Iterator[tuple[str, str]]:
        """Each model with each of its recipes."""
        yield from ((model, name) for model in self.models for name in self.config.recipes_of(model))

    @property
    def with_nearest(self) -> set[str]:
        """The recipes whose types are rounded to nearest as well, to be compared."""
        return {name for model in self.models for name in self.beside_nearest(model)}

    @property
    def with_cross(self) -> set[str]:
        """The recipes that are first rounded by gptq, to measure what their weights do to others' inputs."""
        return {name for model, name in self._all_recipes() if self.crossed(model, name)}

    @property
    def exported(self) -> set[str]:
        """The recipes that make a checkpoint."""
        return {recipe for recipes in self.exports.values() for recipe in recipes}

    @property
    def with_imported_imatrix(self) -> set[str]:
        """The models whose imatrix is published and not measured here."""
        return {model for model in self.models if getattr(self.config.imatrix_of(model), "imported", False)}

    @property
    def with_imported_sensitivity(self) -> set[str]:
        """The models whose sensitivities are published and not measured here."""
        return {one for one in self.models if getattr(self.config.sensitivity_of(one), "imported", False)}

    @property
    def fetched(self) -> set[str]:
        """The models whose source is downloaded."""
        return {model for model in self.models if self.config.models[model].source.fetched}

    @property
    def fetched_files(self) -> set[str]:
        """Their files, relative to the folder that they are downloaded to."""
        return {
            os.path.relpath(file, self.results / model / "source")
            for model in self.fetched
            for file in self.source_files(model)
        }

    @property
    def converted(self) -> set[str]:
        """The models whose source is converted from a checkpoint."""
        return {model for model in self.models if self.config.models[model].source.converted}

    @property
    def staying(self) -> set[str]:
        """Those of them whose GGUF stays."""
        return {model for model in self.converted if self.config.models[model].source.stays}

    @property
    def published(self) -> list[str]:
        """The models that are put into a repository or a registry."""
        return [model for model in self.with_recipes if self.config.publish_of(model).anywhere]

    # --- a model --------------------------------------------------------------

    def card(self, model: str) -> Card:
        """What the config says for the model's card."""
        return self.config.models[model].card

    @once
    def source_files(self, model: str) -> list[str]:
        """The source's files, all parts of a split one; relative where they lie below the working folder."""
        here = Path.cwd()
        files = [Path(os.path.normpath(here / file)) for file in self.config.source_files(model)]
        # A path that begins with a dash would be an option of a command.
        below = [
            file.is_relative_to(here) and not str(file.relative_to(here)).startswith("-") for file in files
        ]
        return [str(f.relative_to(here) if inside else f) for f, inside in zip(files, below, strict=True)]

    def calibration(self, model: str) -> Calibration:
        """The model's imatrix section, where it is measured here."""
        chunks = self.config.calibration_of(model)
        return self._required(chunks, f"{model} has no imatrix", "give it one under imatrix")

    def moments(self, model: str) -> Chunks:
        """The chunks of the model's second moments."""
        chunks = self.config.moments_of(model)
        return self._required(chunks, f"no recipe of {model} has rounding: gptq or gptaq", "give it to one")

    def imported_imatrix(self, model: str) -> ImportedImatrix:
        """The model's imatrix section, where it is a file."""
        imported = self.config.imatrix_of(model)
        assert isinstance(imported, ImportedImatrix)
        return imported

    def probes(self, model: str) -> Probes:
        """The model's sensitivity section, where it is measured here."""
        probes = self.config.probes_of(model)
        return self._required(probes, f"{model} has no sensitivity", "give it one under sensitivity")

    def probe_rounding(self, model: str) -> str:
        """How weights are rounded where the sensitivity is measured: as in the size-targeted recipes. Alone
        a weight has no errors before it, for which gptaq would make up.
        """
        targeted = (name for name, recipe in self.config.recipes_of(model).items() if recipe.size_targeted)
        return "gptq" if any(self.fed_back(model, name) for name in targeted) else "nearest"

    def candidate_types(self, model: str) -> list[str]:
        """The types that the sensitivity is measured at, by their own names.

        Of those that are there by default gptq leaves out what it cannot write; one that the user names is
        refused.
        """
        probes = self.probes(model)
        own = "models." + model + "." if "sensitivity" in self.config.models[model].model_fields_set else ""
        places = [f"sensitivity.types[{number}]" for number in range(len(probes.types))]
        types = [known_type(*pair, self.file) for pair in zip(probes.types, places, strict=True)]
        if self.probe_rounding(model) == "nearest":
            return types
        if "types" in probes.model_fields_set:
            for kind, place in zip(types, places, strict=True):
                if not takes_feedback(kind, "mainline"):
                    cure = "leave it out, or give the size-targeted recipes rounding: nearest"
                    raise QuantmillError(f"{kind} {NO_GRID}", f"{self.file}: {own}{place}", cure)
        return [kind for kind in types if takes_feedback(kind, "mainline")]

    def imported_sensitivity(self, model: str) -> ImportedSensitivity:
        """The model's sensitivity section, where it is a pair of files."""
        imported = self.config.sensitivity_of(model)
        assert isinstance(imported, ImportedSensitivity)
        return imported

    def chunks(self, model: str, measure: str) -> Chunks:
        """The chunks that `kld`, `perplexity`, `embeddings` or `draft` of the model is measured on."""
        chunks = self.config.bench_of(model).chunked.get(measure)
        return self._required(chunks, f"{model} has no {measure}", _UNDER_BENCH)

    def speed(self, model: str) -> Speed:
        """The model's settings of the speed."""
        return self._required(self.config.bench_of(model).speed, f"{model} has no speed", _UNDER_BENCH)

    def served(self, model: str) -> Served:
        """The model's settings of the speed behind a server."""
        return self._required(self.config.bench_of(model).served, f"{model} has no served", _UNDER_BENCH)

    def humaneval(self, model: str) -> HumanEval:
        """The model's settings of HumanEval."""
        settings = self.config.bench_of(model).humaneval
        return self._required(settings, f"{model} has no humaneval", _UNDER_BENCH)

    def tasks(self, model: str) -> Tasks:
        """The model's tasks of lm-eval."""
        settings = self.config.bench_of(model).tasks
        return self._required(settings, f"{model} has no tasks", "give it some under bench")

    def task_files(self, model: str) -> dict[str, str]:
        """The model's own task definitions and their data: the paths by the names in their folder."""
        folder = self.tasks(model).include
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []
        relative = {path.relative_to(folder): str(path) for path in files if folder}
        hidden = (".", "__")
        return {
            str(name): path
            for name, path in relative.items()
            if not any(part.startswith(hidden) for part in name.parts)
        }

    def corpus_use(self, model: str, corpus: str) -> Chunks:
        """How much of a corpus the model uses."""
        used = self.config.corpora_of(model)
        if corpus not in used:
            what, cure = f"{model} does not use the corpus {corpus}", f"it uses {', '.join(used)}"
            raise QuantmillError(what, self.file, cure)
        return used[corpus]

    def corpora_before(self, model: str, corpus: str) -> list[str]:
        """The model's corpora that this one must share no row with: what is tuned on comes first."""
        used = list(self.config.corpora_of(model))
        return used[: used.index(corpus)] if corpus in used else []

    # --- a recipe -------------------------------------------------------------

    @once
    def recipe(self, model: str, recipe: str) -> Recipe | BudgetRecipe:
        """A recipe of the model."""
        recipes = self.config.recipes_of(model)
        if recipe not in recipes:
            what, cure = f"{model} has no recipe {recipe}", f"it has {', '.join(recipes)}"
            raise QuantmillError(what, self.file, cure)
        return recipes[recipe]

    def rendered(self, model: str, recipe: str) -> Recipe:
        """A recipe of the model that is rendered from a template."""
        chosen = self.recipe(model, recipe)
        assert isinstance(chosen, Recipe)
        return chosen

    def allocated(self, model: str, recipe: str) -> BudgetRecipe:
        """A size-targeted recipe of the model."""
        chosen = self.recipe(model, recipe)
        assert isinstance(chosen, BudgetRecipe)
        return chosen

    def place_of(self, model: str, recipe: str) -> str:
        """A recipe's place in the user's file, for errors."""
        own = f"models.{model}." if self.config.models[model].recipes else ""
        return f"{self.file}: {own}recipes[{list(self.config.recipes_of(model)).index(recipe)}]"

    def template(self, model: str, recipe: str) -> str:
        """The file of a recipe's template."""
        return str(user.template_file(self.rendered(model, recipe).template, self.templates))

    def rounding(self, model: str, recipe: str) -> str:
        """How a recipe's weights are rounded: `nearest`, `gptq` or `gptaq`."""
        return self.config.rounding_of(model, self.recipe(model, recipe))

    def fed_back(self, model: str, recipe: str) -> bool:
        """Whether a recipe's weights are rounded with error feedback."""
        return self.rounding(model, recipe) != "nearest"

    def crossed(self, model: str, recipe: str) -> bool:
        """Whether it is measured what a recipe's weights do to the inputs of others."""
        return self.rounding(model, recipe) == "gptaq"

    def beside_nearest(self, model: str) -> list[str]:
        """The model's recipes that the acceptance test compares with the same types rounded to nearest."""
        if self.config.bench_of(model).kld is None:
            return []
        recipes = self.config.recipes_of(model).items()
        return [name for name, one in recipes if one.acceptance_test and self.fed_back(model, name)]

    def split_of(self, model: str, recipe: str) -> int | None:
        """The most bytes of a file of the recipe, where it is split."""
        split = self.config.split_of(self.recipe(model, recipe))
        return split.max_bytes if split else None

    # --- rows of the bench ----------------------------------------------------

    @once
    def engine_of(self, model: str, row: str) -> str:
        """The engine that makes a recipe's file and measures it; the row `source-ik` is the source in ik."""
        if row in SOURCES:
            return SOURCES[row]
        if self.recipe(model, row).size_targeted:
            return self.allocated(model, row).engine
        recipe = self.rendered(model, row)
        imported = interchange.engine_of(Path(recipe.file), str(recipe.form)) if recipe.file else None
        template = self.template(model, row)
        return render.engine_of(render.read_template(Path(template)), recipe.parameters, imported, template)

    @once
    def source_rows(self, model: str) -> list[str]:
        """The rows that are the source itself, one for each engine of the model's files.

        A file's divergence from the source in its own engine is that of its weights alone.
        """
        used = {"mainline", *(self.engine_of(model, recipe) for recipe in self.config.recipes_of(model))}
        return [row for row, engine in SOURCES.items() if engine in used]

    def rows(self, model: str) -> list[str]:
        """The rows of the bench: of files that are models."""
        return [*self.source_rows(model), *whole(self.config.recipes_of(model))]

    def source_row(self, model: str, row: str) -> str:
        """The source's row in the engine of a row."""
        engine = self.engine_of(model, row)
        return next(source for source, its_engine in SOURCES.items() if its_engine == engine)

    def generates(self, model: str, row: str) -> bool:
        """Whether llama.cpp can load a row's file, and so whatever generates text with it."""
        return self.engine_of(model, row) == "mainline"
