"""The specs of what is written for those who download: cards, pictures, the repository."""

from __future__ import annotations

import json
import os
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from quantmill import spec
from quantmill.card import template
from quantmill.config.card import ComparedModel
from quantmill.config.mtp import whole
from quantmill.config.source import HubSource
from quantmill.errors import QuantmillError
from quantmill.flow import beside
from quantmill.flow.once import once
from quantmill.flow.project import ROOT
from quantmill.flow.specs import Specs
from quantmill.flow.targets import Targets
from quantmill.formats import settings as typed
from quantmill.formats.source import LockedCheckpoint
from quantmill.measures import MEASURES
from quantmill.spec import digest

CHECKPOINT_TEMPLATE: Final = template.FOLDER / "checkpoint.md.j2"

CARD_FIELDS: Final = frozenset(
    (
        "license",
        "license_name",
        "license_link",
        "base_model",
        "title",
        "language",
        "tags",
        "pipeline_tag",
        "library_name",
        "datasets",
        "quantized_by",
    )
)
"""What a card takes from the config as it stands; the texts and other models come in apart."""

_LATER: Final = ("embeddings", "projector", "draft")
"""Measures that came later: settings of cards have them only where they are requested."""


class CardSpecs:
    """The specs of cards; `specs` has all that they are written from, `targets` which files that are.

    `verify` is what the command line says of how `snakemake verify` does it.
    """

    def __init__(self, specs: Specs, targets: Targets, *, verify: str | None = None):
        self.specs = specs
        self.targets = targets
        self.project = specs.project
        self.config = specs.config
        self.digests = specs.digests
        self._verify = verify

    @once
    def card(self, model: str) -> str:
        specs, config = self.specs, self.config
        bench, recipes, card = (
            config.bench_of(model),
            list(config.recipes_of(model)),
            self.project.card(model),
        )
        published, repository = config.publish_of(model), config.repository_of(model)
        targeted = [name for name, recipe in config.recipes_of(model).items() if recipe.size_targeted]
        settings = {
            "model": model,
            "source": self._origin(model),
            "recipes": recipes,
            "card": card.model_dump(include=set(CARD_FIELDS), exclude_none=True)
            | {field: text for field, (_, text) in card.words.items()}
            | {"iso_disk": [self._compared(other) for other in card.same_size]},
            "repo": repository,
            "withhold": published.withhold,
            "include": published.include,
            "imatrix": config.imatrix_of(model) is not None,
            **{name: getattr(bench, name) is not None for name in MEASURES if name not in _LATER},
            "sensitivity": config.sensitivity_of(model) is not None,
            "checks": True,
            # `fits`, `gate`, `iso_disk`: the config's old words, without which finished cards are stale.
            "fits": {
                name: {"gate": self.project.allocated(model, name).acceptance_test} for name in targeted
            },
            "toolchain": self._toolchain(model),
        }
        made_from = {
            "template": digest([self.digests.file(str(path)) for path in template.FILES]),
            "check": digest(specs.check(model)),
            "manifest": digest(specs.manifest(model)),
            "corpora": [digest(specs.corpus(model, corpus)) for corpus in config.corpora_of(model)],
            "imatrix": [digest(specs.imatrix(model)) for _ in [config.imatrix_of(model)] if _],
            "sensitivity": [digest(specs.sensitivity(model)) for _ in [config.sensitivity_of(model)] if _],
            "memory": digest(specs.memory(model)),
            "quants": self._quants(model),
            "checks": [digest(specs.checked(model, recipe)) for recipe in recipes],
            "rivals": [self._compared_digest(other) for other in card.same_size],
            **self._measurements(model),
        }
        # Without one that is rounded by gptq, cards need no such keys, and finished ones stay.
        if fed_back := [name for name in recipes if self.project.fed_back(model, name)]:
            compared = self.project.beside_nearest(model)
            settings["rounding"] = {name: name in compared for name in fed_back}
            made_from["moments"] = digest(specs.moments(model))
            made_from["nearest"] = [digest(specs.nearest_kld(model, name)) for name in compared]
        if "ik" in self._engines(model).values():
            settings["engines"] = self._engines(model)
            if bench.served and bench.served.ik_server:
                settings["served_in_ik"] = True
        if used_with := beside.files(self.project, model):
            settings["beside"] = used_with
        if together := beside.together(self.project, model):
            settings["together"] = {name: list(config.recipes_of(name)) for name in together}
            made_from["together"] = [digest(self.card(name)) for name in together]
        settings |= {name: True for name in _LATER if getattr(bench, name) is not None}
        if repository:
            settings["parts"] = True
            made_from["parts"] = digest(self.parts(model))
        if published.sign:
            settings["signed"] = True
        if published.verify:
            settings["verified"] = True
            made_from["verified"] = digest(self.verified(model))
        return spec.make("card.write", settings, made_from)

    def _measurements(self, model: str) -> dict[str, list[str]]:
        """The digests of a model's measurements, by measure: `Specs` has a method of its name for each."""
        specs, bench, rows = self.specs, self.config.bench_of(model), self.project.rows(model)
        digests = {}
        for name, measure in MEASURES.items():
            taken = [row for row in rows if self.targets.paths.takes(model, row, measure)]
            requested = getattr(bench, name) is not None
            digests[name] = [digest(getattr(specs, name)(model, row)) for row in taken if requested]
        # Measures that came later have no key where they are not requested: it would make cards stale.
        first = ("kld", "perplexity", "speed", "served")
        return {name: one for name, one in digests.items() if one or name in first}

    def _quants(self, model: str) -> list[str]:
        return [digest(self.specs.quantized(model, recipe)) for recipe in self.config.recipes_of(model)]

    def _engines(self, model: str) -> dict[str, str]:
        recipes = self.config.recipes_of(model)
        return {recipe: self.project.engine_of(model, recipe) for recipe in recipes}

    def _toolchain(self, model: str) -> dict[str, str]:
        tools = {"quantmill": own_version(), "llama-cpp-python": version("llama-cpp-python")}
        if "ik" in self._engines(model).values():
            tools["ik-llama-cpp-python"] = version("ik-llama-cpp-python")
        return tools

    def _origin(self, model: str) -> dict[str, str]:
        """The name of the source's file, and where it is from, in words."""
        first = Path(self.project.source_files(model)[0])
        return {"file": first.name, "from": self.config.models[model].source.origin}

    def _compared(self, other: ComparedModel) -> dict[str, str | None]:
        """What the spec of a card has of another model."""
        place = self.targets.paths.place_of(other)
        return {"name": other.name, "source": other.source, "path": place}

    def _compared_digest(self, other: ComparedModel) -> str:
        """Identity of another model's figures: of the files, or of the specs that this run makes them by."""
        if other.model is None:
            return digest([self.digests.file(path) for path in self.targets.paths.compared(other)])
        model, specs = other.model, self.specs
        recipes, bench = whole(self.config.recipes_of(model)), self.config.bench_of(model)
        texts = [specs.quantized(model, recipe) for recipe in recipes]
        if bench.kld:
            texts += [specs.kld(model, recipe) for recipe in recipes]
        if bench.humaneval:
            texts += [specs.humaneval(model, recipe) for recipe in recipes]
        return digest([digest(text) for text in texts])

    @once
    def sensitivity_plot(self, model: str) -> str:
        return spec.make("card.maps", {}, {"sensitivity": digest(self.specs.sensitivity(model))})

    @once
    def parts(self, model: str) -> str:
        recipes, split = list(self.config.recipes_of(model)), self.config.publish_of(model).split_bytes
        settings = {"model": model, "recipes": recipes, "split": split}
        return spec.make("publish.split", settings, {"quants": self._quants(model)})

    # --- proof ----------------------------------------------------------------

    @once
    def lock(self, model: str) -> str:
        specs, config, source = self.specs, self.config, self.config.models[model].source
        recipes = list(config.recipes_of(model))
        corpora = {name: json.loads(specs.corpus(model, name)) for name in self.targets.locked_corpora(model)}
        imported = model in self.project.with_imported_imatrix
        imatrix = self.project.imported_imatrix(model).file if imported else None
        settings: typed.Lock = {
            "model": model,
            "recipes": {name: json.loads(specs.quantized(model, name))["config"] for name in recipes},
            "hub": {"repo": source.hf, "revision": source.revision, "file": source.file}
            if isinstance(source, HubSource)
            else None,
            "checkpoint": self._checkpoint(model) if source.converted else None,
            "corpora": {name: _locked(corpus) for name, corpus in corpora.items()},
            "imatrix": specs.imatrix_facts(model),
            "imported": imatrix and self.digests.file(imatrix),
            "engines": {
                name: self.digests.engine(name)
                for name in sorted({"mainline", *self._engines(model).values()})
            },
            "parts": config.repository_of(model) is not None,
            "quantmill": own_version(),
        }
        made_from = {
            "source": specs.source(model),
            "manifest": digest(specs.manifest(model)),
            "corpora": [digest(specs.corpus(model, name)) for name in corpora],
            "imatrix": [digest(specs.imatrix(model)) for _ in [config.imatrix_of(model)] if _],
            "quants": self._quants(model),
            "parts": [digest(self.parts(model))] if settings["parts"] else [],
        }
        return spec.make("proof.lock", settings, made_from)

    def _checkpoint(self, model: str) -> LockedCheckpoint:
        source = self.project.checkpoints[model]
        locked: LockedCheckpoint = {
            "name": Path(source.checkpoint).resolve().name,
            "files": {path.name: self.digests.file(str(path)) for path in source.checkpoint_files},
            "to": source.to,
            "pre_tokenizer": source.pre_tokenizer,
            "converter": self.digests.converter(),
        }
        if source.projector:
            locked["projector"] = True
        return locked

    @once
    def verified(self, model: str) -> str:
        """Of a model whose card says so."""
        settings = {"models": {model: self.config.publish_of(model).verify}}
        return spec.make("proof.verify", settings, {"lock": digest(self.lock(model))})

    def verify(self) -> str:
        """Of all models, whenever it is asked for. QuantmillError where there is nothing to verify."""
        if not self.project.with_recipes:
            what = "no model has a recipe that makes a GGUF"
            raise QuantmillError(what, self.project.file, "there is nothing to verify")
        models = {
            model: self._verify or self.config.publish_of(model).verify or "all"
            for model in self.project.with_recipes
        }
        return spec.make("proof.verify", {"models": models}, {})

    @once
    def signature(self, model: str) -> str:
        settings = {"key": self.digests.key(model)}
        return spec.make("proof.sign", settings, {"lock": digest(self.lock(model))})

    # --- the repository -------------------------------------------------------

    def publish(self) -> str:
        published = self.project.published
        if not published:
            cure = 'add publish: {repo: "organisation/{model}-GGUF"}'
            raise QuantmillError("no repository to publish in", self.project.file, cure)
        models = {model: self._published(model) for model in published}
        for model in published:  # a projector goes with its language model
            if together := beside.together(self.project, model):
                models[model]["together"] = {name: dict(models[name]) for name in together}
                for name in together:
                    models[name]["repo"] = None
                    if "modelscope" in models[model]:
                        models[name].pop("modelscope", None)
        return spec.make("publish.upload", {"confirm": self.project.confirmed, "models": models}, {})

    def _published(self, model: str) -> dict[str, Any]:
        publish, folder = self.config.publish_of(model), self.project.results / model
        measured = self.targets.measured(model) + self.targets.paths.samples(model)
        return publish.model_dump(include={"private", "revision", "include", "overwrite"}) | {
            "repo": self.config.repository_of(model),
            "split": publish.split_bytes,
            "recipes": list(self.config.recipes_of(model)),
            "signed": publish.sign is not None,
            "measured": [os.path.relpath(path, folder) for path in measured],
            **{
                place: name.replace("{model}", model)
                for place in ("ollama", "modelscope")
                if (name := getattr(publish, place))
            },
        }

    @once
    def export(self, model: str, recipe: str) -> str:
        activations = self.targets.paths.activations(model, recipe)
        made_from = {
            "source": self.digests.checkpoint(model),
            "activations": [digest(self.specs.activations(model)) for _ in activations],
        }
        form = self.project.exports[model][recipe].form or "modelopt"
        return spec.make("checkpoint.export", {"recipe": recipe, "form": form}, made_from)

    @once
    def checkpoint_card(self, model: str, recipe: str) -> str:
        card = self.project.given.models[model].card
        settings = {
            "model": model,
            "card": card.model_dump(include=set(CARD_FIELDS), exclude_none=True),
            "toolchain": {"quantmill": own_version()},
        }
        made_from = {
            "template": self.digests.file(str(CHECKPOINT_TEMPLATE)),
            "export": digest(self.export(model, recipe)),
        }
        return spec.make("card.checkpoint", settings, made_from)


def _locked(corpus: dict[str, Any]) -> typed.LockedCorpus:
    """A corpus as a lock has it, of its spec: each file by its digest."""
    settings: typed.Corpus = corpus["config"]
    files = zip(settings["sources"], corpus["from"]["files"], strict=True)
    return {
        "seed": settings["seed"],
        "context": settings["context"],
        "chunks": settings["chunks"],
        "sources": [{**source, "sha256": sha256} for source, sha256 in files],
    }


def own_version() -> str:
    """quantmill's version; it need not be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return str(project["project"]["version"])
