"""The spec of every output: canonical JSON of all that decides it, as a function of names.

What an output is made from enters by its own spec's digest, so that a change far
up reaches everything that depends on it, whatever the files' times say. Nothing
else of the config reaches a stage. The specs of cards are in `card_specs.py`.

Finished files are recognized by the text of these specs: a new key, another name
or another order of a list makes files stale, and needs a reason.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import cast

from quantmill import spec
from quantmill.budget import candidates
from quantmill.flow import floors, metadata, mtp
from quantmill.flow.beside import projectors
from quantmill.flow.media import media, question
from quantmill.flow.once import once
from quantmill.flow.project import SOURCES
from quantmill.flow.source_specs import FED_BACK, Settings, SourceSpecs
from quantmill.formats import general
from quantmill.formats import settings as typed
from quantmill.formats.media import Media
from quantmill.formats.settings import Allocate
from quantmill.recipe.mtp import file_part
from quantmill.spec import digest


class Specs(SourceSpecs):
    """The spec of each output, a text."""

    # --- recipes and plans ----------------------------------------------------

    def _rendered(self, model: str, recipe: str) -> tuple[Settings, Settings]:
        """What decides a recipe that is rendered, and what it is made from."""
        chosen = self.project.rendered(model, recipe)
        settings: Settings = {"parameters": chosen.parameters}
        made_from: Settings = {"template": self.digests.file(self.project.template(model, recipe))}
        # What a plain recipe does not ask for must not make it stale.
        if (head := mtp.of(self.project, model, recipe)) is not None:
            settings["mtp"] = head
        if chosen.file is not None:
            settings["form"] = str(chosen.form)
            made_from["file"] = self.digests.file(chosen.file)
        if chosen.weights:
            scores = chosen.importance.scores if chosen.importance else None
            settings["importance"] = chosen.weights
            made_from["scores"] = [self.digests.file(scores.path)] if scores else []
            made_from["imatrix"] = [digest(self.imatrix(model))] if "imatrix" in chosen.weights else []
            made_from["sensitivity"] = (
                [digest(self.sensitivity(model))] if "sensitivity" in chosen.weights else []
            )
        return settings, made_from

    def _allocation_settings(self, model: str, recipe: str) -> Settings:
        """What decides the types of a size-targeted recipe."""
        chosen = self.project.allocated(model, recipe)
        settings = chosen.settings | {"imatrix": self.imatrix_facts(model)}
        if self.project.fed_back(model, recipe):
            settings |= FED_BACK  # the types that may be chosen are the same for gptaq
        settings |= self._keep(model, recipe)
        if (head := mtp.of(self.project, model, recipe)) is not None:
            settings["mtp"] = head
        candidates.check(cast(Allocate, settings), self.project.place_of(model, recipe))
        return settings

    def _rounding(self, model: str, recipe: str) -> Settings:
        """The setting `rounding` of a recipe; absent where it is to nearest, so that finished files stay."""
        rounding = self.project.rounding(model, recipe)
        return {} if rounding == "nearest" else {"rounding": rounding}

    def _keep(self, model: str, recipe: str) -> Settings:
        """The setting `keep` of a recipe; absent where it keeps no grid, as above."""
        return {"keep": "grid"} if self.project.recipe(model, recipe).keep else {}

    def _grids(self, model: str, recipe: str) -> Settings:
        """What says which tensors lie on a grid, where the recipe keeps it."""
        if not self.project.recipe(model, recipe).keep:
            return {}
        return {"manifest": digest(self.manifest(model))}

    @once
    def speeds(self, model: str) -> str:
        """How fast the types are that the model's recipes with a floor may have."""
        settings: typed.TypeSpeeds = {"types": floors.types(self.project, model)}
        return spec.make(
            "budget.speed", settings, {"model": self.source(model)}, engine=self.digests.engine()
        )

    def _speeds(self, model: str, recipe: str) -> Settings:
        """What says how fast types are, where the recipe has a floor."""
        if not floors.has(self.project, model, recipe):
            return {}
        return {"speeds": digest(self.speeds(model))}

    @once
    def feasibility(self, model: str, recipe: str) -> str:
        settings = self._allocation_settings(model, recipe) | {
            "measured": self.project.candidate_types(model)
        }
        made_from = {"model": self.source(model)} | self._grids(model, recipe) | self._speeds(model, recipe)
        return spec.make("budget.feasibility", settings, made_from, engine=self.digests.engine())

    @once
    def allocated(self, model: str, recipe: str) -> str:
        made_from = {
            "model": self.source(model),
            "sensitivity": digest(self.sensitivity(model)),
            "refit": [],  # a setting that is gone: without it finished files would be stale
        }
        settings = self._allocation_settings(model, recipe)
        made_from |= self._grids(model, recipe) | self._speeds(model, recipe)
        return spec.make("budget.allocate", settings, made_from, engine=self.digests.engine())

    @once
    def plan(self, model: str, recipe: str) -> str:
        if self.project.recipe(model, recipe).size_targeted:
            written: Settings = {}
            made_from: Settings = {"recipe": digest(self.allocated(model, recipe))}
        else:
            written, made_from = self._rendered(model, recipe)
        made_from |= {"model": self.source(model)} | self._grids(model, recipe)
        plan: typed.Plan = {"recipe": recipe, "imatrix": self.imatrix_facts(model)}
        settings = plan | written | self._rounding(model, recipe) | self._keep(model, recipe)
        # A budget has the types of a draft head in its recipe; what is in the file it has not.
        if (part := file_part(self.project.recipe(model, recipe).mtp)) is not None:
            settings["mtp"] = part
        return spec.make("recipe.plan", settings, made_from, engine=self.digests.engine())

    @once
    def memory(self, model: str) -> str:
        recipes = self.config.recipes_of(model)
        made_from = {"plans": [digest(self.plan(model, recipe)) for recipe in recipes]}
        settings: typed.Memory = {"contexts": self.project.card(model).contexts}
        if beside := projectors(self.project, model):
            made_from["projectors"] = [digest(self.plan(*one)) for one in beside]
            settings["projectors"] = [f"{name}-{recipe}.gguf" for name, recipe in beside]
        return spec.make("model.memory", settings, made_from)

    @once
    def quantized(self, model: str, recipe: str) -> str:
        return self._quantized(model, recipe, metadata.of(self.project, model, recipe))

    def _quantized(self, model: str, recipe: str, values: dict[str, general.Plain]) -> str:
        settings, made_from = self._nearest(model, recipe)
        if values:
            settings["metadata"] = values
        if most := self.project.split_of(model, recipe):
            settings["split"] = most
            if (split := self.config.split_of(self.project.recipe(model, recipe))) and split.header:
                settings["header"] = True
        if self.project.fed_back(model, recipe):
            settings, made_from = self._fed_back(model, settings, made_from)
        if self.project.crossed(model, recipe):
            settings |= self._rounding(model, recipe)
            made_from |= {"cross": digest(self.cross(model, recipe))}
        engine = self.digests.engine_of(model, recipe)
        return spec.make("quantize.write", settings, made_from, engine=engine)

    @once
    def checked(self, model: str, recipe: str) -> str:
        made_from = {"model": digest(self.quantized(model, recipe))}
        return self._measured("check.file", model, recipe, {}, made_from)

    @once
    def gptq(self, model: str, recipe: str) -> str:
        """The same types rounded by gptq, in one file whatever the recipe's `split`."""
        settings, made_from = self._fed_back(model, *self._nearest(model, recipe))
        return spec.make("quantize.write", settings, made_from, engine=self.digests.engine())

    @once
    def cross(self, model: str, recipe: str) -> str:
        """What the weights of that file do to others' inputs."""
        chunks = self.project.moments(model)
        made_from = {
            "model": self.source(model),
            "corpus": digest(self.corpus(model, chunks.corpus)),
            "moments": digest(self.moments(model)),
            "quantized": digest(self.gptq(model, recipe)),
        }
        return spec.make("measure.cross", chunks.model_dump(), made_from, engine=self.digests.engine())

    @once
    def nearest(self, model: str, recipe: str) -> str:
        """The same types rounded to nearest, in one file whatever the recipe's `split`."""
        return spec.make(
            "quantize.write", *self._nearest(model, recipe), engine=self.digests.engine_of(model, recipe)
        )

    def _nearest(self, model: str, recipe: str) -> tuple[Settings, Settings]:
        """The settings of a file that is rounded to nearest, and what it is made from."""
        made_from = {
            "manifest": digest(self.manifest(model)),
            "plan": digest(self.plan(model, recipe)),
            "imatrix": self._imatrices(model),
        }
        settings = {"imatrix": self.imatrix_facts(model)} | self._keep(model, recipe)
        return self._with_engine(model, recipe, settings), made_from

    def _with_engine(self, model: str, row: str, settings: Settings) -> Settings:
        """The settings of a stage that runs in a row's engine; it is named where it is not mainline."""
        name = self.project.engine_of(model, row)
        return settings if name == "mainline" else settings | {"engine": name}

    # --- measurements ---------------------------------------------------------

    @once
    def file(self, model: str, row: str) -> str:
        """Identity of the GGUF that a row of the bench is about, without metadata that change no result."""
        if row in SOURCES:
            return self.source(model)
        values = metadata.of(self.project, model, row)
        kept = {key: value for key, value in values.items() if key not in general.unmeasured(values)}
        return digest(self._quantized(model, row, kept))

    @once
    def kld(self, model: str, row: str) -> str:
        return self._divergence(model, row, self.file(model, row))

    @once
    def nearest_kld(self, model: str, row: str) -> str:
        """The divergence of the same types rounded to nearest."""
        return self._divergence(model, row, digest(self.nearest(model, row)))

    def _divergence(self, model: str, row: str, file: str) -> str:
        chunks = self.project.chunks(model, "kld")
        made_from = {
            "model": file,
            "reference": self.source(model),
            "corpus": digest(self.corpus(model, chunks.corpus)),
        }
        return self._measured("measure.divergence", model, row, chunks.model_dump(), made_from)

    @once
    def perplexity(self, model: str, row: str) -> str:
        chunks = self.project.chunks(model, "perplexity")
        corpus = digest(self.corpus(model, chunks.corpus))
        made_from = {"model": self.file(model, row), "corpus": corpus}
        return self._measured("measure.perplexity", model, row, chunks.model_dump(), made_from)

    @once
    def embeddings(self, model: str, row: str) -> str:
        chunks = self.project.chunks(model, "embeddings")
        made_from = {
            "model": self.file(model, row),
            "reference": self.source(model),
            "corpus": digest(self.corpus(model, chunks.corpus)),
        }
        engine = self.digests.generating_engine(model, row)
        return spec.make("measure.embeddings", chunks.model_dump(), made_from, engine=engine)

    @once
    def projector(self, model: str, row: str) -> str:
        files = media(self.project, model)
        made_from: Settings = {
            "model": self.file(model, row),
            "reference": self.source(model),
            "media": [self.digests.file(file) for file in files],
            "mtmd": self.digests.mtmd(),
        }
        if other := self.config.models[model].language_model:
            made_from["language_model"] = self.source(other)
        settings: Media = {"media": [Path(file).name for file in files]}
        if asked := question(self.project, model):
            settings["question"] = asked
        engine = self.digests.generating_engine(model, row)
        return spec.make("measure.projector", settings, made_from, engine=engine)

    @once
    def draft(self, model: str, row: str) -> str:
        chunks = self.project.chunks(model, "draft")
        corpus = digest(self.corpus(model, chunks.corpus))
        made_from = {"model": self.file(model, row), "corpus": corpus}
        engine = self.digests.generating_engine(model, row)
        return spec.make("measure.draft", chunks.model_dump(), made_from, engine=engine)

    @once
    def speed(self, model: str, row: str) -> str:
        speed = self.project.speed(model)
        return self._measured(
            "measure.speed", model, row, speed.model_dump(), {"model": self.file(model, row)}
        )

    def _measured(self, stage: str, model: str, row: str, settings: Settings, made_from: Settings) -> str:
        engine = self.digests.engine_of(model, row)
        return spec.make(stage, self._with_engine(model, row, settings), made_from, engine=engine)

    @once
    def served(self, model: str, row: str) -> str:
        served = self.project.served(model)
        server = served.server_of(self.project.engine_of(model, row))
        made_from = {
            "model": self.file(model, row),
            "server": [self.digests.file(server)] if server else [],
        }
        without = {"server", "ik_server"} | (set() if served.draft else {"draft"})
        settings = served.model_dump(exclude=without)
        if not self.project.generates(model, row):  # llama.cpp makes the prompts, by the source's vocabulary
            made_from["vocabulary"] = self.source(model)
            return spec.make("serve.measure", settings, made_from, engine=self.digests.engine())
        engine = self.digests.generating_engine(model, row)
        return spec.make("serve.measure", settings, made_from, engine=engine)

    @once
    def humaneval(self, model: str, row: str) -> str:
        humaneval = self.project.humaneval(model)
        made_from = {
            "model": self.file(model, row),
            "problems": self.digests.file(str(humaneval.file())),
        }
        engine = self.digests.generating_engine(model, row)
        return spec.make("evaluate.humaneval", humaneval.settings, made_from, engine=engine)

    @once
    def tasks(self, model: str, row: str) -> str:
        files = self.project.task_files(model)
        made_from = {
            "model": self.file(model, row),
            "files": {name: self.digests.file(path) for name, path in files.items()},
        }
        settings = self.project.tasks(model).model_dump() | {"lm-eval": version("lm-eval")}
        engine = self.digests.generating_engine(model, row)
        return spec.make("evaluate.tasks", settings, made_from, engine=engine)
