"""The inputs of the rules, each a function of the wildcards that its parameters are named after.

Snakemake compares files over 1 MB by their times alone, so the large ones are
`ancient`: touching or copying them does nothing. Each comes with a small file of
the same job that is not ancient: where all files between two jobs are ancient,
Snakemake does not look whether the second's params changed once the first is due.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from quantmill.flow import floors
from quantmill.flow.beside import projectors
from quantmill.flow.media import media
from quantmill.flow.paths import Paths
from quantmill.flow.project import ROOT, SOURCES

Files: TypeAlias = list[str]
Mark: TypeAlias = Callable[[Files], Files]


class Inputs:
    """The files that jobs read; `ancient` and `local` are Snakemake's.

    What comes with the workflow or a package is local: the environment has it wherever a job runs,
    while all else may be in a storage.
    """

    def __init__(self, paths: Paths, ancient: Mark, local: Mark = list):
        self.paths = paths
        self.project = paths.project
        self._ancient, self._local = ancient, local
        # Of every input of every job it is asked whether it is installed: by its first letters alone.
        here = ("recipes/",) if Path.cwd() == ROOT else ()
        self._installed = (f"{sys.prefix}/", f"{ROOT / 'recipes'}/", *here)

    def ancient(self, files: Files) -> Files:
        """The same files, whose times count for nothing."""
        installed = [file for file in files if file.startswith(self._installed)]
        if not installed:
            return self._ancient(files)
        return self._ancient(self._local(installed) + [file for file in files if file not in installed])

    # --- the source -----------------------------------------------------------

    def source(self, model: str) -> Files:
        """The source's files, and the reports of those that were fetched or converted."""
        files = self.project.source_files(model)
        made = self.project.config.models[model].source.made
        return [*self.ancient(files), *(f"{file}.json" for file in files if made)]

    def results(self) -> str:
        """The folder with the results of all models."""
        return str(self.project.results)

    def first(self, model: str) -> str:
        """The source's first file, by which it is opened."""
        return self.project.source_files(model)[0]

    def key(self, model: str) -> str | None:
        """The user's key, where the lock is signed."""
        return self.project.config.publish_of(model).sign

    def checkpoint_config(self, model: str) -> Files:
        """The checkpoint's config.json, by which its folder is known."""
        folder = self.project.checkpoints[model].checkpoint
        return self.ancient([f"{folder.removesuffix('/')}/config.json"])

    def checkpoint_files(self, model: str) -> Files:
        """All files of the checkpoint."""
        return self.ancient([str(path) for path in self.project.checkpoints[model].checkpoint_files])

    def activations(self, model: str, recipe: str) -> Files:
        """What entered a checkpoint's weights, where activations are quantized as well."""
        return self.paths.activations(model, recipe)

    # --- corpora --------------------------------------------------------------

    def texts(self, corpus: str) -> Files:
        """The user's files of a corpus."""
        return self.ancient([source.path for source in self.project.config.corpora[corpus].sources])

    def corpora_before(self, model: str, corpus: str) -> Files:
        """The corpora that this one must share no row with."""
        return self.ancient(self._corpora(model, self.project.corpora_before(model, corpus), "parquet"))

    def reports_before(self, model: str, corpus: str) -> Files:
        """Their reports: small and never ancient, so that a corpus built anew is seen."""
        return self._corpora(model, self.project.corpora_before(model, corpus), "json")

    def calibration_corpus(self, model: str) -> Files:
        """The corpus of the imatrix."""
        return self.ancient(self._corpora(model, [self.project.calibration(model).corpus], "parquet"))

    def calibration_report(self, model: str) -> Files:
        """Its report."""
        return self._corpora(model, [self.project.calibration(model).corpus], "json")

    def tuning_corpus(self, model: str) -> Files:
        """The corpus of the sensitivity."""
        return self.ancient(self._corpora(model, [self.project.probes(model).corpus], "parquet"))

    def tuning_report(self, model: str) -> Files:
        """Its report."""
        return self._corpora(model, [self.project.probes(model).corpus], "json")

    def kld_corpus(self, model: str) -> Files:
        """The corpus of the divergence."""
        return self.ancient(self._corpora(model, [self.project.chunks(model, "kld").corpus], "parquet"))

    def kld_report(self, model: str) -> Files:
        """Its report."""
        return self._corpora(model, [self.project.chunks(model, "kld").corpus], "json")

    def perplexity_corpus(self, model: str) -> Files:
        """The corpus of the perplexity."""
        chunks = self.project.chunks(model, "perplexity")
        return self.ancient(self._corpora(model, [chunks.corpus], "parquet"))

    def perplexity_report(self, model: str) -> Files:
        """Its report."""
        return self._corpora(model, [self.project.chunks(model, "perplexity").corpus], "json")

    def embeddings_corpus(self, model: str) -> Files:
        """The corpus whose texts are embedded."""
        chunks = self.project.chunks(model, "embeddings")
        return self.ancient(self._corpora(model, [chunks.corpus], "parquet"))

    def embeddings_report(self, model: str) -> Files:
        """Its report."""
        return self._corpora(model, [self.project.chunks(model, "embeddings").corpus], "json")

    def draft_corpus(self, model: str) -> Files:
        """The corpus whose texts a draft head's model continues."""
        return self.ancient(self._corpora(model, [self.project.chunks(model, "draft").corpus], "parquet"))

    def draft_report(self, model: str) -> Files:
        """Its report."""
        return self._corpora(model, [self.project.chunks(model, "draft").corpus], "json")

    def source_embeddings(self, model: str, row: str) -> Files:
        """The source's own, which those of a file come after: it embeds the texts once for all."""
        return [] if row in SOURCES else [self.paths.of(model, "bench/source/embeddings.json")]

    def _corpora(self, model: str, corpora: list[str], ending: str) -> Files:
        return self.paths.corpora(model, corpora, ending)

    # --- imatrix, second moments and sensitivity ----------------------------------------------

    def imatrix(self, model: str) -> Files:
        """The model's imatrix."""
        return self.ancient(self.paths.imatrix(model, "gguf"))

    def imatrix_report(self, model: str) -> Files:
        """Its report."""
        return self.paths.imatrix(model, "json")

    def moments_corpus(self, model: str) -> Files:
        """The corpus of the second moments."""
        return self.ancient(self._corpora(model, [self.project.moments(model).corpus], "parquet"))

    def moments_report(self, model: str) -> Files:
        """Its report."""
        return self._corpora(model, [self.project.moments(model).corpus], "json")

    def moments(self, model: str, recipe: str) -> Files:
        """The report of the second moments, where a file is rounded by them."""
        return self.paths.moments(model) if self.project.fed_back(model, recipe) else []

    def calibration(self, model: str, recipe: str) -> Files:
        """Their corpus, of which those are measured again that the store has lost."""
        return self.moments_corpus(model) if self.moments(model, recipe) else []

    def cross(self, model: str, recipe: str) -> Files:
        """The report of what its weights do to others' inputs, where a file is rounded by that."""
        return [self.paths.cross(model, recipe)] if self.project.crossed(model, recipe) else []

    def cross_gguf(self, model: str, recipe: str) -> Files:
        """The GGUF of the same types rounded by gptq."""
        return self.ancient([self.paths.gptq(model, recipe, "gguf")])

    def cross_facts(self, model: str, recipe: str) -> str:
        """Its report."""
        return self.paths.gptq(model, recipe, "json")

    def probe_moments(self, model: str) -> Files:
        """The report of the second moments, where the sensitivity is measured with them."""
        return self.paths.moments(model) if self.project.probe_rounding(model) == "gptq" else []

    def probe_calibration(self, model: str) -> Files:
        """Their corpus."""
        return self.moments_corpus(model) if self.probe_moments(model) else []

    def published_imatrix(self, model: str) -> Files:
        """The file to import it from."""
        return self.ancient([self.project.imported_imatrix(model).file])

    def published_sensitivity(self, model: str) -> Files:
        """The table to import the sensitivities from."""
        return self.ancient([self.project.imported_sensitivity(model).results])

    def published_curve(self, model: str) -> Files:
        """The table of all tensors at each type."""
        return self.ancient([self.project.imported_sensitivity(model).curve])

    # --- recipes and plans ----------------------------------------------------

    def feasibility(self, model: str, recipe: str) -> Files:
        """Whether a size can be met, where the sensitivity is yet to be measured: refused before it is."""
        imported = model in self.project.with_imported_sensitivity
        return [] if imported else [self.paths.of(model, f"reach/{recipe}.json")]

    def template(self, model: str, recipe: str) -> Files:
        """A recipe's template."""
        return self.ancient([self.project.template(model, recipe)])

    def published_recipe(self, model: str, recipe: str) -> Files:
        """The file that a recipe imports."""
        file = self.project.rendered(model, recipe).file
        return self.ancient([file] if file is not None else [])

    def scores(self, model: str, recipe: str) -> Files:
        """The user's own scores of layers."""
        importance = self.project.rendered(model, recipe).importance
        return self.ancient([importance.scores.path] if importance and importance.scores else [])

    def ranking_imatrix(self, model: str, recipe: str) -> Files:
        """The imatrix, where the recipe ranks layers by it."""
        return self.ancient(self._ranking("imatrix", model, recipe, self.paths.imatrix(model, "gguf")))

    def ranking_imatrix_report(self, model: str, recipe: str) -> Files:
        """Its report."""
        return self._ranking("imatrix", model, recipe, self.paths.imatrix(model, "json"))

    def ranking_sensitivity(self, model: str, recipe: str) -> Files:
        """The sensitivities, where the recipe ranks layers by them."""
        return self.ancient(self._ranking("sensitivity", model, recipe, self.paths.sensitivity(model, "tsv")))

    def ranking_sensitivity_report(self, model: str, recipe: str) -> Files:
        """Their report."""
        return self._ranking("sensitivity", model, recipe, self.paths.sensitivity(model, "json"))

    def _ranking(self, source: str, model: str, recipe: str, files: Files) -> Files:
        return files if source in self.project.rendered(model, recipe).weights else []

    def grids(self, model: str, recipe: str) -> Files:
        """The manifest, which says what lies on a grid, where the recipe keeps it."""
        if not self.project.recipe(model, recipe).keep:
            return []
        first = self.first(model)
        return [first if first.endswith(".tsv") else self.paths.of(model, "manifest.tsv")]

    def speeds(self, model: str, recipe: str) -> Files:
        """How fast the types are on this machine, where the recipe has a floor."""
        return [self.paths.of(model, "speeds.json")] if floors.has(self.project, model, recipe) else []

    def plan_reports(self, model: str) -> Files:
        """The reports of all plans of a model."""
        return [self.paths.of(model, f"plans/{name}.json") for name in self.project.config.recipes_of(model)]

    def projector_plans(self, model: str) -> Files:
        """The reports of the plans of its projectors' files."""
        beside = projectors(self.project, model)
        return [self.paths.of(name, f"plans/{recipe}.json") for name, recipe in beside]

    # --- measurements ---------------------------------------------------------

    def gguf(self, model: str, row: str) -> Files:
        """The GGUF that a row of the bench is about: a recipe's, or the source itself."""
        return self.source(model) if row in SOURCES else self.ancient([self.paths.gguf(model, row)])

    def facts(self, model: str, row: str) -> str:
        """The report with the sha256 of that GGUF."""
        return self.paths.facts(model, row)

    def gguf_of(self, model: str, recipe: str) -> Files:
        """The GGUF of a recipe."""
        return self.gguf(model, recipe)

    def facts_of(self, model: str, recipe: str) -> str:
        """Its report."""
        return self.facts(model, recipe)

    def nearest_gguf(self, model: str, row: str) -> Files:
        """The GGUF of the same types rounded to nearest."""
        return self.ancient([self.paths.nearest(model, row, "gguf")])

    def nearest_facts(self, model: str, row: str) -> str:
        """Its report."""
        return self.paths.nearest(model, row, "json")

    def noise_floor(self, model: str, row: str) -> Files:
        """The source's divergence from itself, which that of a file comes after: it makes the predictions."""
        source = self.project.source_row(model, row)
        return [] if row in SOURCES else [self.paths.of(model, f"bench/{source}/kld.json")]

    def divergence(self, model: str, row: str) -> Files:
        """The divergence of a file, which its perplexity comes after where both are of one corpus.

        One evaluation gives both, and the second finds it in the store. It is not
        ancient, though nothing of it enters the perplexity: else, where both are
        due, Snakemake would leave the second out.
        """
        bench = self.project.config.bench_of(model)
        same = bench.kld and bench.perplexity and bench.kld.corpus == bench.perplexity.corpus
        return [self.paths.of(model, f"bench/{row}/kld.json")] if same else []

    def media(self, model: str) -> Files:
        """The pictures and sounds that a projector is measured on."""
        return self.ancient(media(self.project, model))

    def language_model(self, model: str) -> Files:
        """The source of the language model that a projector is for, where it is named."""
        other = self.project.config.models[model].language_model
        return self.source(other) if other else []

    def source_projected(self, model: str, row: str) -> Files:
        """The source's own, which those of a file come after: it makes the vectors once for all."""
        return [] if row in SOURCES else [self.paths.of(model, "bench/source/projector.json")]

    def server(self, model: str, row: str) -> Files:
        """The user's own llama-server, of the engine of the file."""
        server = self.project.served(model).server_of(self.project.engine_of(model, row))
        return self.ancient([server] if server else [])

    def vocabulary(self, model: str, row: str) -> Files:
        """The source, for the vocabulary of a file that llama.cpp cannot open."""
        return [] if self.project.generates(model, row) else self.ancient([self.first(model)])

    def problems(self, model: str) -> Files:
        """The problems of HumanEval."""
        return self.ancient([str(self.project.humaneval(model).file())])

    def tasks(self, model: str) -> Files:
        """The user's own definitions of tasks, and their data."""
        return self.ancient(list(self.project.task_files(model).values()))

    # --- cards and publishing -------------------------------------------------

    def compared(self, model: str) -> Files:
        """What the card reads of other models."""
        others = self.project.card(model).same_size
        return [file for other in others for file in self.paths.compared(other)]

    def ggufs(self, model: str) -> Files:
        """The GGUFs of all recipes."""
        recipes = self.project.config.recipes_of(model)
        return self.ancient([self.paths.gguf(model, recipe) for recipe in recipes])

    def gguf_reports(self, model: str) -> Files:
        """Their reports."""
        return [self.paths.facts(model, recipe) for recipe in self.project.config.recipes_of(model)]
