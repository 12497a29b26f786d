"""The specs of what is made before any file: the source, its corpora, what is measured of it.

What a spec is says `specs.py`, which has all others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from quantmill import spec
from quantmill.config.corpora import Calibration, Chunks, CorpusSource
from quantmill.flow.digests import Digests
from quantmill.flow.once import once
from quantmill.formats import imatrix
from quantmill.formats import settings as typed
from quantmill.spec import digest

Settings = dict[str, Any]

FED_BACK: Final[Settings] = {"rounding": "gptq"}
"""What the spec of a stage has that rounds with error feedback."""


class SourceSpecs:
    """The spec of each of these outputs, a text; `digests` identifies what is no output."""

    def __init__(self, digests: Digests):
        self.digests = digests
        self.project = digests.project
        self.config = digests.project.config

    # --- the source -----------------------------------------------------------

    @once
    def source(self, model: str) -> str:
        """Identity of the source: of its bytes, the commit it is fetched from, or how it is converted."""
        return self.config.models[model].source.identity(
            lambda: self.digests.files(self.project.source_files(model)),
            lambda: digest(self.convert(model)),
        )

    @once
    def fetch(self, model: str, file: str) -> str:
        source = self.config.models[model].source.model_dump()
        settings: typed.Fetch = {"repo": source["hf"], "file": file, "revision": source["revision"]}
        return spec.make("model.fetch", settings, {})

    @once
    def convert(self, model: str) -> str:
        source = self.project.checkpoints[model]
        settings: typed.Convert = {"to": source.to, "pre_tokenizer": source.pre_tokenizer}
        if source.projector:
            settings["projector"] = True
        made_from = {"source": self.digests.checkpoint(model), "converter": self.digests.converter()}
        return spec.make("checkpoint.convert", settings, made_from)

    @once
    def manifest(self, model: str) -> str:
        return spec.make("model.manifest", {}, {"model": self.source(model)})

    @once
    def check(self, model: str) -> str:
        made_from = {"model": self.source(model)}
        return spec.make("check.source", {"model": model}, made_from, engine=self.digests.engine())

    # --- what is measured before any file is made -----------------------------

    @once
    def corpus(self, model: str, corpus: str) -> str:
        used = self.project.corpus_use(model, corpus)
        chosen = self.config.corpora[corpus]
        before = self.project.corpora_before(model, corpus)
        settings: typed.Corpus = {
            "corpus": corpus,
            "seed": chosen.seed,
            "context": used.context,
            "chunks": used.chunks,
            "sources": [_corpus_source(source) for source in chosen.sources],
        }
        made_from = {
            "model": self.source(model),
            "files": [self.digests.file(source.path) for source in chosen.sources],
            "disjoint_from": [digest(self.corpus(model, other)) for other in before],
        }
        return spec.make("corpus.build", settings, made_from, engine=self.digests.engine())

    @once
    def imatrix(self, model: str) -> str:
        if model in self.project.with_imported_imatrix:
            file = self.project.imported_imatrix(model).file
            imported = {"model": self.source(model), "imatrix": self.digests.file(file)}
            return spec.make("imatrix.imported", {"file": Path(file).name}, imported)
        through_head = {"mtp": True} if self.project.calibration(model).mtp else {}
        return self._calibrated("measure.imatrix", model, self.project.calibration(model), through_head)

    @once
    def moments(self, model: str) -> str:
        return self._calibrated("measure.moments", model, self.project.moments(model))

    @once
    def activations(self, model: str) -> str:
        return self._calibrated("checkpoint.calibrate", model, self.project.calibration(model))

    def _calibrated(self, stage: str, model: str, chunks: Chunks, more: Settings | None = None) -> str:
        made_from = {"model": self.source(model), "corpus": digest(self.corpus(model, chunks.corpus))}
        settings = chunks.model_dump(include=set(Chunks.model_fields)) | (more or {})
        return spec.make(stage, settings, made_from, engine=self.digests.engine())

    @once
    def sensitivity(self, model: str) -> str:
        if model in self.project.with_imported_sensitivity:
            return self._imported_sensitivity(model)
        probes = self.project.probes(model)
        settings = probes.model_dump() | {"types": self.project.candidate_types(model)}
        made_from = {
            "model": self.source(model),
            "manifest": digest(self.manifest(model)),
            "corpus": digest(self.corpus(model, probes.corpus)),
            "imatrix": self._imatrices(model),
        }
        if self.project.probe_rounding(model) == "gptq":
            settings, made_from = self._fed_back(model, settings, made_from)
        return spec.make("sensitivity.measure", settings, made_from, engine=self.digests.engine())

    def _imported_sensitivity(self, model: str) -> str:
        imported = self.project.imported_sensitivity(model)
        made_from = {
            "model": self.source(model),
            "results": self.digests.file(imported.results),
            "curve": self.digests.file(imported.curve),
        }
        return spec.make("sensitivity.imported", {}, made_from, engine=self.digests.engine())

    def _fed_back(self, model: str, settings: Settings, made_from: Settings) -> tuple[Settings, Settings]:
        """The settings of a stage that rounds with error feedback, and what its output is made from then."""
        moments = {"moments": digest(self.moments(model))}
        return settings | FED_BACK, made_from | moments

    def _imatrices(self, model: str) -> list[str]:
        """The digest of the imatrix's spec, or none."""
        return [digest(self.imatrix(model))] if self.config.imatrix_of(model) else []

    @once
    def imatrix_facts(self, model: str) -> typed.ImatrixFile | None:
        """What a GGUF says of the imatrix that it was made with."""
        section = self.config.imatrix_of(model)
        if isinstance(section, Calibration):
            facts: typed.ImatrixFile = {
                "file": f"{model}-imatrix.gguf",
                "dataset": section.corpus,
                "chunks": section.chunks,
            }
            return {**facts, "mtp": True} if section.mtp else facts
        if section is None:
            return None
        dataset, count = imatrix.facts(Path(section.file))
        return {"file": Path(section.file).name, "dataset": dataset, "chunks": count}


def _corpus_source(source: CorpusSource) -> typed.CorpusSource:
    """A source of a corpus without its path: the file is known by its digest."""
    return {"name": source.name, "column": source.column, "rows": source.rows, "weight": source.weight}
