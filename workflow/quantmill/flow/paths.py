"""The files of the workflow: where each result of a model, a recipe or a row of the bench lies."""

from __future__ import annotations

from pathlib import Path

from quantmill.config.card import ComparedModel
from quantmill.config.mtp import whole
from quantmill.config.source import calibrated
from quantmill.flow.project import SOURCES, Project
from quantmill.measures import MEASURES, Measure


class Paths:
    """The paths of results; a list where a model may have none."""

    def __init__(self, project: Project):
        self.project = project

    def of(self, model: str, name: str) -> str:
        """A result of a model."""
        return str(self.project.results / model / name)

    def corpora(self, model: str, corpora: list[str], ending: str) -> list[str]:
        """Corpora as built for the model (`parquet`), or their reports (`json`)."""
        return [self.of(model, f"corpus/{corpus}.{ending}") for corpus in corpora]

    def imatrix(self, model: str, *endings: str) -> list[str]:
        """The model's imatrix in these forms: `gguf`, `dat`, and the report `json`."""
        has = self.project.config.imatrix_of(model) is not None
        return [self.of(model, f"imatrix.{ending}") for ending in endings if has]

    def moments(self, model: str) -> list[str]:
        """The report of the model's second moments, where any recipe needs them."""
        return [self.of(model, "moments.json")] if self.project.config.moments_of(model) else []

    def cross(self, model: str, recipe: str) -> str:
        """The report of what a recipe's weights do to others' inputs."""
        return self.of(model, f"cross/{recipe}.json")

    def gptq(self, model: str, recipe: str, ending: str) -> str:
        """The file rounded by gptq that this is measured of: the GGUF, which is there for a time (`gguf`), or
        its report.
        """
        return self.of(model, f"cross/gguf/{model}-{recipe}.{ending}")

    def nearest(self, model: str, recipe: str, ending: str) -> str:
        """The same types rounded to nearest: the GGUF, which is there for a time (`gguf`), or its report."""
        return self.of(model, f"nearest/gguf/{model}-{recipe}.{ending}")

    def nearest_kld(self, model: str, recipe: str) -> str:
        """The divergence of that file."""
        return self.of(model, f"nearest/{recipe}.kld.json")

    def sensitivity(self, model: str, *endings: str) -> list[str]:
        """The model's sensitivities (`tsv`) and their report (`json`)."""
        has = self.project.config.sensitivity_of(model) is not None
        return [self.of(model, f"sensitivity.{ending}") for ending in endings if has]

    def allocation(self, model: str, recipe: str) -> list[str]:
        """The report of a size-targeted recipe."""
        targeted = self.project.recipe(model, recipe).size_targeted
        return [self.of(model, f"recipes/{recipe}.json")] if targeted else []

    def gguf(self, model: str, recipe: str) -> str:
        """A recipe's GGUF; its folder where it is split: only its plan knows how many files there are."""
        ending = "" if self.project.split_of(model, recipe) else ".gguf"
        return self.of(model, f"gguf/{model}-{recipe}{ending}")

    def facts(self, model: str, row: str) -> str:
        """The report with the sha256 of a row's GGUF."""
        return self.of(model, "model.json" if row in SOURCES else f"gguf/{model}-{row}.json")

    def checked(self, model: str, recipe: str) -> str:
        """The report of a recipe's finished file."""
        return self.of(model, f"checks/{recipe}.json")

    def takes(self, model: str, row: str, measure: Measure) -> bool:
        """Whether a measure can be taken of a row: in its engine, or by the server of its engine; of a file
        without the draft head no drafts.
        """
        if measure.name == "draft" and row not in SOURCES and self.project.recipe(model, row).mtp == "none":
            return False
        engine, served = self.project.engine_of(model, row), self.project.config.bench_of(model).served
        by_server = measure.name == "served" and served is not None and served.server_of(engine) is not None
        return measure.runs_in(engine) or by_server

    def measured(self, model: str, row: str) -> list[str]:
        """The measurements of one row."""
        bench = self.project.config.bench_of(model)
        measures = [
            one for one in MEASURES.values() if self.takes(model, row, one) and getattr(bench, one.name)
        ]
        return [self.of(model, measure.path(row)) for measure in measures]

    def samples(self, model: str) -> list[str]:
        """What else the measurements of a model's rows write, such as the answers to HumanEval."""
        bench = self.project.config.bench_of(model)
        return [
            self.of(model, path)
            for measure in MEASURES.values()
            if measure.samples and getattr(bench, measure.name)
            for row in self.project.rows(model)
            if self.takes(model, row, measure)
            for path in measure.sample_paths(row)
        ]

    def activations(self, model: str, recipe: str) -> list[str]:
        """The largest inputs of a checkpoint's weights, where activations are quantized as well."""
        exported = self.project.exports[model][recipe]
        return [self.of(model, "activations.json")] if calibrated(exported) else []

    def compared(self, other: ComparedModel) -> list[str]:
        """What a card reads of another model: its facts and what was measured, or a table."""
        if other.csv is not None:
            return [other.csv]
        if other.results is not None:
            patterns = ("gguf/*.json", "bench/*/kld.json", "bench/*/humaneval.json")
            files = (path for pattern in patterns for path in Path(other.results).glob(pattern))
            return sorted(map(str, files))
        model = str(other.model)
        recipes = whole(self.project.config.recipes_of(model))
        facts = [self.of(model, f"gguf/{model}-{recipe}.json") for recipe in recipes]
        return facts + [file for recipe in recipes for file in self.measured(model, recipe)]

    def place_of(self, other: ComparedModel) -> str:
        """Where a card reads another model: a table, or the folder of a model's results."""
        return other.csv or other.results or str(self.project.results / str(other.model))
