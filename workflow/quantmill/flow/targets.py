"""What each target asks for: the files of every model that it names."""

from __future__ import annotations

from collections.abc import Callable

from quantmill.flow.beside import together
from quantmill.flow.inputs import Files, Inputs
from quantmill.flow.once import once


class Targets:
    """The files behind `snakemake TARGET`, and those of one model."""

    def __init__(self, inputs: Inputs):
        self.inputs = inputs
        self.paths = inputs.paths
        self.project = inputs.project

    # --- of all models --------------------------------------------------------

    def all(self) -> Files:
        """Everything: all results of all models, and the exported checkpoints."""
        return self._every(self.results) + self.checkpoints()

    def cards(self) -> Files:
        """The model cards."""
        return self._every(self.card)

    def quants(self) -> Files:
        """The quantized files, each checked."""
        return self._every(self.checks) + self._every(self.quantized) + self._every(self.checked)

    def plans(self) -> Files:
        """The plans: which type each tensor gets. They need the source's header alone."""
        return self._every(self.planned)

    def checkpoints(self) -> Files:
        """The exported checkpoints."""
        return [file for model in self.project.exports for file in self.exported(model)]

    def imatrices(self) -> Files:
        """The importance matrices."""
        return self._every(self.checks) + self._every(self.imatrix)

    def sensitivities(self) -> Files:
        """The sensitivities."""
        return self._every(self.checks) + self._every(self.sensitivity)

    def published(self) -> Files:
        """All results of the models that are put into a repository."""
        return [file for model in self.project.published for file in self.results(model)]

    def verify(self) -> Files:
        """What `verify` reads, of all models."""
        return self._every(self.verified_with)

    def sources(self) -> Files:
        """The first file of the source of each model that `verify` is about."""
        return [self.project.source_files(model)[0] for model in self.project.with_recipes]

    def _every(self, files_of: Callable[[str], Files]) -> Files:
        return [file for model in self.project.with_recipes for file in files_of(model)]

    # --- of one model ---------------------------------------------------------

    def checks(self, model: str) -> Files:
        """What comes before all else: whether anything can be made of the source."""
        return [self.paths.of(model, "check.json")]

    def imatrix(self, model: str) -> Files:
        """The importance matrix in both forms, and its report."""
        return self.paths.imatrix(model, "gguf", "dat", "json")

    def sensitivity(self, model: str) -> Files:
        """The sensitivities and their report."""
        return self.paths.sensitivity(model, "tsv", "json")

    def planned(self, model: str) -> Files:
        """The plans, and the memory that contexts take."""
        recipes = self.project.config.recipes_of(model)
        plans = [
            self.paths.of(model, f"plans/{recipe}.{kind}") for recipe in recipes for kind in ("tsv", "json")
        ]
        return [*plans, self.paths.of(model, "memory.json")]

    def quantized(self, model: str) -> Files:
        """The quantized files and their reports."""
        recipes = self.project.config.recipes_of(model)
        pairs = ((self.paths.gguf(model, recipe), self.paths.facts(model, recipe)) for recipe in recipes)
        return [file for pair in pairs for file in pair]

    def checked(self, model: str) -> Files:
        """What the checks of the finished files found."""
        return [self.paths.checked(model, recipe) for recipe in self.project.config.recipes_of(model)]

    def card(self, model: str) -> Files:
        """The card, its page and its pictures."""
        plots = ["bits", "size", *("sensitivity" for _ in self.paths.sensitivity(model, "tsv"))]
        names = ["README.md", "index.html", "withheld.json", "modelfiles"]
        names += [f"plots/{plot}{theme}.svg" for plot in plots for theme in ("", "-dark")]
        return [self.paths.of(model, f"card/{name}") for name in names]

    @once
    def described(self, model: str) -> Files:
        """All that a card is written from but measurements: the GGUFs' reports instead of the GGUFs."""
        paths, config = self.paths, self.project.config
        recipes = list(config.recipes_of(model))
        return [
            *(paths.of(model, name) for name in ("check.json", "manifest.tsv", "model.json")),
            *paths.corpora(model, list(config.corpora_of(model)), "json"),
            *paths.imatrix(model, "json"),
            *paths.moments(model),
            *(paths.of(model, f"recipes/{recipe}.yaml") for recipe in recipes),
            *(report for recipe in recipes for report in paths.allocation(model, recipe)),
            *paths.sensitivity(model, "json"),
            *self.planned(model),
            *self.inputs.gguf_reports(model),
            *self.checked(model),
            *([paths.of(model, "parts.json")] if config.repository_of(model) else []),
        ]

    def measured(self, model: str) -> Files:
        """The measurements of a model's files, the source first."""
        return [file for row in self.project.rows(model) for file in self.paths.measured(model, row)]

    def together(self, model: str) -> Files:
        """What its card tells of the projectors that are published with it."""
        names = together(self.project, model)
        return [
            file
            for name in names
            for file in (
                *self.inputs.gguf_reports(name),
                *self.measured(name),
                self.paths.of(name, "card/withheld.json"),
            )
        ]

    def nearest(self, model: str) -> Files:
        """What files with error feedback are compared with: the same types rounded to nearest."""
        recipes = self.project.beside_nearest(model)
        pairs = [
            (self.paths.nearest(model, recipe, "json"), self.paths.nearest_kld(model, recipe))
            for recipe in recipes
        ]
        return [file for pair in pairs for file in pair]

    def results(self, model: str) -> Files:
        """All that is made of a model, so that whatever is deleted is made again."""
        stays = model in self.project.staying
        files = [
            *(self.project.source_files(model) if stays else []),
            *self.described(model),
            *self.paths.corpora(model, list(self.project.config.corpora_of(model)), "parquet"),
            *self.imatrix(model),
            *self.sensitivity(model),
            *self.quantized(model),
            *self.measured(model),
            *self.nearest(model),
            *self.paths.samples(model),
            *self.proof(model),
        ]
        return [*dict.fromkeys(files), *self.card(model)]

    def locked_corpora(self, model: str) -> list[str]:
        """The corpora that the model's files are made with: of the imatrix, of the second moments, and of the
        sensitivity where types are chosen by it.
        """
        config, recipes = self.project.config, self.project.config.recipes_of(model)
        chosen = any(
            recipe.size_targeted or "sensitivity" in self.project.rendered(model, name).weights
            for name, recipe in recipes.items()
        )
        used = (
            config.calibration_of(model),
            config.moments_of(model),
            config.probes_of(model) if chosen else None,
        )
        return list(dict.fromkeys(chunks.corpus for chunks in used if chunks is not None))

    @once
    def locked(self, model: str) -> Files:
        """What a lock is made of: reports and tables; the imatrix and the corpora, which it digests."""
        paths, recipes = self.paths, list(self.project.config.recipes_of(model))
        corpora = self.locked_corpora(model)
        plans = [f"plans/{recipe}.{kind}" for recipe in recipes for kind in ("tsv", "json")]
        source = self.project.source_files(model)
        return [
            *(paths.of(model, name) for name in ("manifest.tsv", "model.json")),
            *(self.inputs.source(model) if len(source) > 1 else []),
            *paths.corpora(model, corpora, "json"),
            *self.inputs.ancient(paths.corpora(model, corpora, "parquet")),
            *self.inputs.imatrix(model),
            *self.inputs.imatrix_report(model),
            *paths.moments(model),
            *(file for recipe in recipes for file in self.inputs.cross(model, recipe)),
            *(paths.of(model, f"recipes/{recipe}.yaml") for recipe in recipes),
            *(paths.of(model, name) for name in plans),
            *self.inputs.gguf_reports(model),
            *([paths.of(model, "parts.json")] if self.project.config.repository_of(model) else []),
        ]

    def verified_with(self, model: str) -> Files:
        """What the model's files are made of again, and the files."""
        corpora = [chunks.corpus for chunks in [self.project.config.moments_of(model)] if chunks]
        return [
            self.paths.of(model, "lock.json"),
            *self.inputs.source(model),
            *(self.paths.of(model, name) for name in ("manifest.tsv", "model.json")),
            *self.inputs.ancient(self.paths.corpora(model, corpora, "parquet")),
            *self.inputs.ggufs(model),
        ]

    def verified(self, model: str) -> Files:
        """What came of making the model's files again, where its card says so."""
        asked = self.project.config.publish_of(model).verify
        return [self.paths.of(model, "verify.json")] if asked else []

    def proof(self, model: str) -> Files:
        """The lock, the statements, and what else of it the config asks for."""
        signed = ["lock.json.sig"] if self.project.config.publish_of(model).sign else []
        return [
            *(self.paths.of(model, name) for name in ("lock.json", "statements", *signed)),
            *self.verified(model),
        ]

    def exported(self, model: str) -> Files:
        """The exports of a checkpoint: of each folder the files that all have, and its report; what was
        calibrated for them.
        """
        recipes = self.project.exports[model]
        calibrated = {file for recipe in recipes for file in self.paths.activations(model, recipe)}
        names = ("{}/config.json", "{}/README.md", "{}.json")
        folders = [f"checkpoint/{model}-{recipe}" for recipe in recipes]
        return [
            *calibrated,
            *(self.paths.of(model, name.format(folder)) for folder in folders for name in names),
        ]
