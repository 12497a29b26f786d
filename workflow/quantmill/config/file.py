"""The user's file, `config.yaml`: strict models, errors in one line, and each model's own view of it.

Only `flow` imports this package: a stage knows nothing of the config, and pays
nothing for pydantic. `python -m quantmill.config.file` prints the JSON schema, which
lies in `docs/config.schema.json` so that editors complete and check the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from quantmill.config import renamed
from quantmill.config.bench import Bench, Probes, check_evaluations
from quantmill.config.card import Card, Publish
from quantmill.config.corpora import Calibration, Chunks, Corpus, Imatrix, ImportedImatrix, check_uses
from quantmill.config.fields import HINTS, FilePath, Name, Strict
from quantmill.config.metadata import Metadata
from quantmill.config.offload import Offload
from quantmill.config.recipe import (
    BudgetRecipe,
    ImportedSensitivity,
    Recipe,
    Recipes,
    Rounding,
    Sensitivity,
    Split,
    preset,
)
from quantmill.config.refusal import check_file, explain, refuse
from quantmill.config.repositories import check_repositories
from quantmill.config.source import Source, calibrated, check_folders, check_recipes, exported, of_ggufs
from quantmill.config.store import Store
from quantmill.errors import QuantmillError


class Model(Strict):
    """One model. What it has of its own replaces the file's."""

    source: Source = Field(description="where the model comes from")
    card: Card = Field(default=Card(), description="what its card says beside the measurements")
    recipes: Recipes | None = Field(default=None, description="its own recipes")
    imatrix: Imatrix | None = Field(default=None, description="its own; null: none for this model")
    moments: Chunks | None = Field(default=None, description="its own; null: as its imatrix")
    sensitivity: Sensitivity | None = Field(default=None, description="its own; null: none for this model")
    bench: Bench | None = Field(default=None, description="its own measurements")
    publish: Publish | None = Field(default=None, description="its own settings")
    metadata: Metadata | None = Field(default=None, description="its own; null: as in the source")
    offload: Offload | None = Field(default=None, description="its own settings")
    language_model: Name | None = Field(
        default=None, description="of a projector (mmproj): the model of this config that it is for"
    )


class Config(Strict):
    """quantmill's config.yaml."""

    models: Annotated[dict[Name, Model], Field(min_length=1)] = Field(description="the models, by name")
    corpora: dict[Name, Corpus] = Field(default={}, description="the corpora, by name; no two share a row")
    imatrix: Imatrix | None = Field(default=None, description="the importance matrix: measured or published")
    rounding: Rounding = Field(
        default="nearest",
        description="how weights are rounded: nearest, each by itself, as llama-quantize does; gptq, so that "
        "later ones make up for the errors of earlier ones; gptaq, also for those of the weights before them "
        "in their layer ([recipes](recipes.md#rounding))",
    )
    moments: Chunks | None = Field(
        default=None,
        description="the text for rounding gptq and gptaq, of which second moments are measured; default: as "
        "imatrix",
    )
    sensitivity: Sensitivity | None = Field(
        default=None, description="the sensitivities for size-targeted recipes: measured or imported"
    )
    recipes: Recipes | None = Field(
        default=None, description="the files to make; a preset's name is a recipe"
    )
    split: Split | None = Field(default=None, description="for every recipe without a `split` of its own")
    bench: Bench = Field(default=Bench(), description="what is measured")
    publish: Publish = Field(default=Publish(), description="which files are offered, and where")
    metadata: Metadata | None = Field(default=None, description="what the files' metadata say")
    results: FilePath = Field(default="results", description="the folder of all outputs")
    store: Store = Field(default=Store(), description="the store of finished units of work")
    offload: Offload = Field(default=Offload(), description="how models are spread over GPUs")
    shards: int = Field(default=1, ge=1, le=1000, description="over how many jobs long stages are spread")

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for name, model in self.models.items():
            if self.recipes is None and model.recipes is None:
                raise refuse("no_recipes", "no recipes; give the model or the file some", f"models.{name}")
            if model.source.converted:
                recipes = self.recipes_of(name).values()
                check_recipes(f"models.{name}", model, recipes)
                if any(map(calibrated, recipes)):
                    self._check_calibration(name)
                elif all(map(exported, recipes)):
                    continue
            else:
                self._check_forms(name)
            self._check_budgets(name)
            self._check_rounding(name)
            self._check_corpora(name)
        check_repositories(of_ggufs(self))
        self._check_splits()
        return self

    def _check_calibration(self, name: str) -> None:
        """Activations are calibrated on the text that the importance matrix is made of."""
        if self.calibration_of(name) is None:
            imported = self.imatrix_of(name) is not None
            lacks = "that is a file; name a corpus in its place" if imported else "it has none; add it"
            text = f"scheme W4A4 is calibrated on the corpus of imatrix, and {lacks}"
            raise refuse("no_calibration", text, f"models.{name}.recipes")

    def _check_forms(self, name: str) -> None:
        """A GGUF is made into no checkpoint."""
        for number, recipe in enumerate(self.recipes_of(name).values()):
            if not exported(recipe) or not isinstance(recipe, Recipe):
                continue
            for field, value in (("form", recipe.form), ("scheme", recipe.scheme)):
                if value is not None:
                    text = f"a GGUF cannot be made {value}; leave it out, or take the checkpoint as source"
                    own = f"models.{name}." if self.models[name].recipes else ""
                    raise refuse(f"{field}_of_gguf", text, f"{own}recipes[{number}].{field}")

    def _check_budgets(self, name: str) -> None:
        """A budget knows what each tensor is worth, and its name is no other model's usual recipe's."""
        own = f"models.{name}." if self.models[name].recipes else ""
        usual = {
            recipe.name
            for model in self.models
            for recipe in self.recipes_of(model).values()
            if isinstance(recipe, Recipe)
        }
        for number, recipe in enumerate(self.recipes_of(name).values()):
            if not isinstance(recipe, BudgetRecipe):
                continue
            if self.sensitivity_of(name) is None:
                text = f"{name} has no sensitivity, which a budget needs; give it one under sensitivity"
                raise refuse("no_sensitivity", text, f"{own}recipes[{number}]")
            if recipe.name in usual:
                text = f"another model's recipe {recipe.name} has no budget; rename one"
                raise refuse("two_kinds", text, f"{own}recipes[{number}].name")
            if recipe.objective == "error" and self.probes_of(name) is None:
                text = "kld is all that an imported sensitivity knows; leave it out"
                raise refuse("imported_error", text, f"{own}recipes[{number}].objective")

    def _check_rounding(self, name: str) -> None:
        """What has error feedback has a text to be measured on; all budgets of a model have it, or none."""
        budgets: dict[str, str] = {}
        for number, recipe in enumerate(self.recipes_of(name).values()):
            own = f"models.{name}." if self.models[name].recipes else ""
            at = f"{own}recipes[{number}].rounding" if recipe.rounding else "rounding"
            rounding = self.rounding_of(name, recipe)
            if rounding != "nearest" and self.moments_of(name) is None:
                lacks = (
                    f"the imatrix of {name} is a file" if self.imatrix_of(name) else f"{name} has no imatrix"
                )
                text = f"{rounding} is calibrated on the text of moments or imatrix, and {lacks}"
                raise refuse("no_moments", f"{text}; name a corpus under moments", at)
            if recipe.size_targeted and self.probes_of(name) is not None:
                to_nearest = rounding == "nearest"
                differing = (other for other in budgets if (budgets[other] == "nearest") != to_nearest)
                if (other := next(differing, None)) is not None:
                    text = f"sensitivities are measured with one rounding, and {other} has {budgets[other]}"
                    raise refuse("two_roundings", f"{text}; give both the same", at)
                budgets[recipe.name] = rounding

    def _check_splits(self) -> None:
        """Recipes of one name are split for all models or for none: their files go by the name."""
        kinds: dict[str, bool] = {}
        for model in self.models:
            for number, recipe in enumerate(self.recipes_of(model).values()):
                split = self.split_of(recipe) is not None
                if kinds.setdefault(recipe.name, split) != split:
                    own = f"models.{model}." if self.models[model].recipes else ""
                    text = f"{recipe.name} of another model is{' not' if split else ''} split; rename one"
                    raise refuse("two_kinds", text, f"{own}recipes[{number}].split")

    def _check_corpora(self, name: str) -> None:
        """Each corpus is defined; what is tuned on one is not measured on it; all are cut in one way."""
        own, bench = self.models[name].model_fields_set, self.bench_of(name)
        uses = {
            "imatrix": self.calibration_of(name),
            "moments": self.moments_of(name),
            "sensitivity": self.probes_of(name),
            **{f"bench.{measure}": used for measure, used in bench.chunked.items()},
        }
        places = {use: f"models.{name}.{use}" if use.partition(".")[0] in own else use for use in uses}
        check_uses([(use, places[use], used) for use, used in uses.items()], self.corpora)

    def imatrix_of(self, model: str) -> Imatrix | None:
        """The model's own imatrix section, if it has one, else the file's."""
        own = self.models[model]
        return own.imatrix if "imatrix" in own.model_fields_set else self.imatrix

    def offload_of(self, model: str) -> Offload:
        """The model's own offload section, if it has one, else the file's."""
        return self.models[model].offload or self.offload

    def requested_of(self, model: str) -> list[tuple[str, str, int]]:
        """What the model is evaluated for: the field, its place in the file, the tokens of a chunk (or 0)."""
        own, bench = self.models[model].model_fields_set, self.bench_of(model)
        used: dict[str, Any] = {
            "imatrix": self.calibration_of(model),
            "moments": self.moments_of(model),
            "sensitivity": self.probes_of(model),
        }
        used |= {f"bench.{field}": section for field, section in bench.requested.items()}
        return [
            (
                field,
                f"models.{model}.{field}" if field.partition(".")[0] in own else field,
                section.context if isinstance(section, Chunks) else 0,
            )
            for field, section in used.items()
            if section is not None
        ]

    def calibration_of(self, model: str) -> Calibration | None:
        """The same where it is measured here."""
        section = self.imatrix_of(model)
        return section if isinstance(section, Calibration) else None

    def rounding_of(self, model: str, recipe: Recipe | BudgetRecipe) -> Rounding:
        """The recipe's own, else the file's; nearest for an exported checkpoint and for a head alone."""
        if recipe.mtp == "only" or (self.models[model].source.converted and exported(recipe)):
            return "nearest"
        return recipe.rounding or self.rounding

    def moments_of(self, model: str) -> Chunks | None:
        """The chunks of which second moments are measured; None where no recipe of the model needs them."""
        recipes = self.recipes_of(model).values()
        if all(self.rounding_of(model, recipe) == "nearest" for recipe in recipes):
            return None
        own = self.models[model]
        given = own.moments if "moments" in own.model_fields_set else self.moments
        return given or self.calibration_of(model)

    def sensitivity_of(self, model: str) -> Sensitivity | None:
        """The model's own sensitivity section, if it has one, else the file's."""
        own = self.models[model]
        return own.sensitivity if "sensitivity" in own.model_fields_set else self.sensitivity

    def probes_of(self, model: str) -> Probes | None:
        """The same where it is measured here."""
        section = self.sensitivity_of(model)
        return section if isinstance(section, Probes) else None

    def bench_of(self, model: str) -> Bench:
        """The model's own bench section, if it has one, else the file's."""
        return self.models[model].bench or self.bench

    def publish_of(self, model: str) -> Publish:
        """The model's own publish section, if it has one, else the file's."""
        return self.models[model].publish or self.publish

    def repository_of(self, model: str) -> str | None:
        """The repository that the model is published in; None where none is named."""
        repo = self.publish_of(model).repo
        return repo and repo.replace("{model}", model)

    def recipes_of(self, model: str) -> dict[str, Recipe | BudgetRecipe]:
        """The model's recipes by name, in the user's order; a preset's name alone is a recipe."""
        own = self.models[model].recipes
        given = self.recipes if own is None else own
        recipes = (preset(recipe) if isinstance(recipe, str) else recipe for recipe in given or [])
        return {recipe.name: recipe for recipe in recipes}

    def split_of(self, recipe: Recipe | BudgetRecipe) -> Split | None:
        """The recipe's own split, if it says anything of it, else the file's."""
        return recipe.split if "split" in recipe.model_fields_set else self.split

    def corpora_of(self, model: str) -> dict[str, Chunks]:
        """The corpora that the model uses, by name, with the most chunks used of each.

        Calibration first, then tuning, then held-out: each shares no row with those before it.
        """
        used = [
            self.calibration_of(model),
            self.moments_of(model),
            self.probes_of(model),
            *self.bench_of(model).chunked.values(),
        ]
        most: dict[str, Chunks] = {}
        for chunks in (chunks for chunks in used if chunks is not None):
            other = most.get(chunks.corpus)
            most[chunks.corpus] = other if other and other.chunks > chunks.chunks else chunks
        return most

    def source_files(self, model: str) -> list[Path]:
        """The files of the model's source, all parts of a split one."""
        return self.models[model].source.files(model, self.results)

    @property
    def store_path(self) -> Path:
        """The store's folder."""
        return Path(self.store.path or Path(self.results) / ".store")


def parse(data: Any, file: str = "config.yaml") -> Config:
    """The config from a mapping; the first thing wrong in it is a QuantmillError with its path in `file`.

    Fields by their old names are accepted, with a warning on stderr.
    """
    data, warnings = renamed.with_new_names(data, file)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise explain(error, file, HINTS) from None


def template_file(template: str, folders: Iterable[Path]) -> Path | None:
    """The file of a recipe's template in the first of the folders that has it."""
    files = (folder / f"{template}.yaml.j2" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def check_files(config: Config, file: str, templates: list[Path]) -> None:
    """Refuse a source, a corpus file or a template that does not exist, before any work starts.

    `templates` are the folders in which templates are looked for, first one first.
    """
    check_folders(config.models, file)
    config = of_ggufs(config)
    for name, model in config.models.items():
        if not model.source.made:
            for path in config.source_files(name):
                check_file(path, f"{file}: models.{name}.source")
    for name in config.models:
        served = config.bench_of(name).served
        own = f"models.{name}." if config.models[name].bench else ""
        for field, server in (served.servers if served else {}).items():
            check_file(Path(server), f"{file}: {own}bench.served.{field}")
    used = {corpus for model in config.models for corpus in config.corpora_of(model)}
    for name in sorted(used):
        for number, source in enumerate(config.corpora[name].sources):
            check_file(Path(source.path), f"{file}: corpora.{name}.sources[{number}].path")
    for name in config.models:
        imatrix = config.imatrix_of(name)
        if isinstance(imatrix, ImportedImatrix):
            own = f"models.{name}." if config.models[name].imatrix else ""
            check_file(Path(imatrix.file), f"{file}: {own}imatrix.file")
        imported = config.sensitivity_of(name)
        if isinstance(imported, ImportedSensitivity):
            own = f"models.{name}." if config.models[name].sensitivity else ""
            check_file(Path(imported.results), f"{file}: {own}sensitivity.import")
            check_file(Path(imported.curve), f"{file}: {own}sensitivity.curve")
    for name, model in config.models.items():
        check_evaluations(
            config.bench_of(name), f"{file}: models.{name}.bench" if model.bench else f"{file}: bench"
        )
    for recipe in (recipe for model in config.models for recipe in config.recipes_of(model).values()):
        if not isinstance(recipe, Recipe):
            continue
        for named in recipe.files:
            check_file(Path(named), f"{file}: recipe {recipe.name}")
        if template_file(recipe.template, templates) is None:
            known = sorted(
                {file.name.removesuffix(".yaml.j2") for folder in templates for file in folder.glob("*.j2")}
            )
            what = f"no template {recipe.template}.yaml.j2 in {' or '.join(map(str, templates))}"
            raise QuantmillError(
                what, f"{file}: recipe {recipe.name}", f"there is {', '.join(known) or 'none'}"
            )


def schema() -> dict[str, Any]:
    """The JSON schema of config.yaml."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Config.model_json_schema()


def main() -> None:
    """Print the JSON schema of config.yaml."""
    json.dump(schema(), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
