"""All measurements of one model, read from the files in `results/<model>/` (docs/files.md has their form)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from quantmill.errors import QuantmillError
from quantmill.formats import settings
from quantmill.formats.allocation import (
    ALLOCATION,
    PLAN,
    SENSITIVITY,
    ImportedSensitivity,
    Sensitivity,
)
from quantmill.formats.checks import CHECKS, Checks
from quantmill.formats.corpus import CORPUS, Corpus
from quantmill.formats.importance import IMATRIX, Imatrix
from quantmill.formats.manifest import ManifestRow, read_manifest_rows
from quantmill.formats.measurements import OF_MEASURE, Divergence
from quantmill.formats.moments import MOMENTS, Moments
from quantmill.formats.plan import read_plan
from quantmill.formats.proof import VERIFIED, Verified
from quantmill.formats.publication import FACTS, PARTS, Facts
from quantmill.formats.sensitivity import SensitivityRow, read_sensitivity
from quantmill.formats.source import CHECK, MEMORY, MODEL, Check, Model
from quantmill.judge import compare, validity
from quantmill.judge.acceptance import SizeTargeted, size_targeted
from quantmill.judge.quant import DECODER, Measurements, Quant
from quantmill.judge.rounding import Rounded, rounded
from quantmill.judge.scores import scores_of
from quantmill.measures import MAINLINE, MEASURES, SOURCE, Measure
from quantmill.spec import file_sha256


@dataclass(frozen=True)
class Results:
    """All measurements of one model.

    `quants` stand largest first. `source` are the source's own measurements,
    `scores` its scores by evaluation. `check` is check.json. `validity_warnings`
    say why a measure or a task is not valid, by its name. `withheld` are files
    that are not offered. `moments` is moments.json, where any file is of gptq,
    `verified` verify.json, where the card is to say so. `drafts` are the files
    of a draft head alone, of which nothing is measured.
    """

    facts: Model
    manifest: list[ManifestRow]
    quants: list[Quant]
    source: Measurements
    imatrix: Imatrix | None
    corpora: dict[str, Corpus]
    sensitivities: list[SensitivityRow]
    sensitivity: Sensitivity | ImportedSensitivity | None = None
    check: Check = field(default_factory=lambda: Check(kind=DECODER, words="", warnings=[]))
    validity_warnings: dict[str, str] = field(default_factory=dict)
    scores: dict[str, compare.Score] = field(default_factory=dict)
    withheld: list[Quant] = field(default_factory=list)
    moments: Moments | None = None
    verified: Verified | None = None
    drafts: list[Quant] = field(default_factory=list)

    @cached_property
    def size_targeted(self) -> list[SizeTargeted]:
        """The size-targeted files and how they compare; withheld files count too, also as baselines."""
        return size_targeted([*self.quants, *self.withheld])

    @cached_property
    def rounded(self) -> list[Rounded]:
        """The files of gptq beside the same types rounded to nearest; withheld files too."""
        return rounded([*self.quants, *self.withheld], self.corpora)

    @cached_property
    def rejected(self) -> dict[str, str]:
        """The files that failed their check or an acceptance test, by name: the verdict (markdown)."""
        rejected = [(name, file.verdict) for name, file in self.worse_than_nearest.items()]
        rejected += [(file.quant.name, file.verdict) for file in self.size_targeted if file.rejected]
        rejected += [(quant.name, "**not recommended: failed its check**") for quant in self.unsound]
        verdicts: dict[str, list[str]] = {}
        for name, verdict in rejected:
            verdicts.setdefault(name, []).append(verdict)
        return {name: "; ".join(of_file) for name, of_file in verdicts.items()}

    @property
    def unsound(self) -> list[Quant]:
        """The files that failed their check; withheld files too."""
        return [quant for quant in (*self.quants, *self.withheld, *self.drafts) if quant.failures]

    @property
    def worse_than_nearest(self) -> dict[str, Rounded]:
        """Those of them that are on some text worse than the same types rounded to nearest, by name."""
        return {} if self.unranked else {file.quant.name: file for file in self.rounded if file.rejected}

    @property
    def kind(self) -> str:
        """What kind of model it is, such as `decoder`: it decides how a file is used."""
        return str(self.check["kind"])

    @property
    def sensitive_by(self) -> str:
        """The measure of sensitivities: `kld`, or `embeddings` of a model that predicts no next token."""
        return "embeddings" if self.kind in ("encoder", "reranker") else "kld"

    @property
    def bpw(self) -> float:
        """Bits per weight of the source, the whole file."""
        return float(8 * self.facts["bytes"] / self.facts["parameters"])

    @cached_property
    def type(self) -> str:
        """The type that holds the most bytes of the source."""
        total: Counter[str] = Counter()
        for tensor in self.manifest:
            total[tensor.type] += tensor.bytes
        return total.most_common(1)[0][0]

    @property
    def measure(self) -> str | None:
        """What losses are measured by: `kld` unless its noise floor is too high, else `perplexity`;
        `embeddings` of a model without either.
        """
        if self.source["kld"] is not None and "kld" not in self.validity_warnings:
            return "kld"
        if self.source["embeddings"] is not None or self.source["projector"] is not None:
            return "embeddings"
        return None if self.source["perplexity"] is None else "perplexity"

    @property
    def unranked(self) -> str:
        """Why no file can be ranked by its loss, in words; empty where they can be."""
        if "perplexity" in self.validity_warnings:
            return self.validity_warnings["perplexity"]
        return self.validity_warnings.get("kld", "") if self.measure is None else ""

    @property
    def noise_floor(self) -> float | None:
        """The largest KL divergence of any prediction of the source from its own, in either direction."""
        kld = self.source["kld"]
        return max(kld["kld"]["max"], -kld["kld"]["min"]) if kld is not None else None

    def beside_source(self, quant: Quant, evaluation: str) -> str:
        """The verdict of a file's score beside the source's, in words."""
        source = self.scores.get(evaluation)
        if source is None or evaluation in self.validity_warnings or evaluation not in quant.scores:
            return "no verdict"
        return compare.scores(quant.scores[evaluation], source).verdict


def read(folder: Path, config: settings.Card) -> Results:
    """Read the results of the recipes in `config`.

    Raises QuantmillError for a file that is missing or broken, for a
    measurement of another file, and for one of other chunks than the source's.
    """
    facts = MODEL.read(folder / "model.json")
    source = _measurements(folder, SOURCE, config, facts["sha256"])
    engines = set(config.get("engines", {}).values()) - {MAINLINE}
    sources = {MAINLINE: source} | {
        engine: _measurements(folder, f"{SOURCE}-{engine}", config, facts["sha256"], engine)
        for engine in engines
    }
    imatrix = IMATRIX.read(folder / "imatrix.json") if config["imatrix"] else None
    files: dict[str, tuple[Facts, Measurements]] = {}
    for name in config["recipes"]:
        of_file = FACTS.read(folder / "gguf" / f"{config['model']}-{name}.json")
        engine = config.get("engines", {}).get(name, MAINLINE)
        known_as = of_file.get("measured_as", of_file["sha256"])
        part = PLAN.read(folder / "plans" / f"{name}.json").get("mtp", "")
        files[name] = of_file, _measurements(folder, name, config, known_as, engine, part)
    divergences = [kld for _, measured in files.values() if (kld := measured["kld"])]
    validity_warnings = validity.warnings(source, divergences)
    quants = [_quant(folder, name, config, *files[name], sources, validity_warnings) for name in files]
    ordered = sorted(quants, key=lambda quant: -quant.bytes)
    check = CHECK.read(folder / "check.json")
    # The tables are of the cache of a context; other kinds of model have none.
    if check["kind"] == DECODER and (folder / "memory.json").exists():
        tables = MEMORY.read(folder / "memory.json")["recipes"]
        ordered = [replace(quant, memory=tables.get(quant.name)) for quant in ordered]
    sensitivity = SENSITIVITY.read(folder / "sensitivity.json") if config["sensitivity"] else None
    moments = MOMENTS.read(folder / "moments.json") if config.get("rounding") else None
    measured = (source["kld"], source["perplexity"], source["embeddings"], source["draft"])
    reports = (imatrix, moments, *measured, sensitivity)
    corpora = [report["corpus"] for report in reports if report is not None and "corpus" in report]
    samples = folder / MEASURES["humaneval"].sample_paths(SOURCE)[0]
    return Results(
        facts=facts,
        manifest=read_manifest_rows(folder / "manifest.tsv"),
        quants=[quant for quant in ordered if not quant.alone],
        drafts=[quant for quant in ordered if quant.alone],
        source=source,
        imatrix=imatrix,
        corpora={name: CORPUS.read(folder / "corpus" / f"{name}.json") for name in dict.fromkeys(corpora)},
        sensitivities=read_sensitivity(folder / "sensitivity.tsv") if config["sensitivity"] else [],
        sensitivity=sensitivity,
        check=check,
        validity_warnings=validity_warnings,
        scores=scores_of(source["humaneval"], source["tasks"], samples),
        moments=moments,
        verified=_verified(folder) if config.get("verified") else None,
    )


def _verified(folder: Path) -> Verified | None:
    """verify.json, where it is about the lock that is there."""
    report = VERIFIED.read(folder / "verify.json")
    return report if report["lock"] == file_sha256(folder / "lock.json") else None


def _quant(
    folder: Path,
    name: str,
    config: settings.Card,
    facts: Facts,
    measured: Measurements,
    sources: dict[str, Measurements],
    validity_warnings: dict[str, str],
) -> Quant:
    """A file beside the source in the file's own engine: two engines round the same weights differently."""
    split = PARTS.read(folder / "parts.json").get(name) if config.get("parts") else None
    source = sources[config.get("engines", {}).get(name, MAINLINE)]
    divergence = difference = None
    if (kld := measured["kld"]) and source["kld"] and "kld" not in validity_warnings:
        divergence = compare.divergence(kld, source["kld"], str(folder / MEASURES["kld"].path(name)))
    if (nearest := _nearest(folder, name, config)) and kld:
        compare.check_same_chunks(nearest, kld, str(folder / "nearest" / f"{name}.kld.json"))
    if (perplexity := measured["perplexity"]) and source["perplexity"]:
        where = str(folder / MEASURES["perplexity"].path(name))
        difference = compare.paired(perplexity, source["perplexity"], where)
    distance = None
    if (embeddings := measured["embeddings"]) and source["embeddings"]:
        where = str(folder / MEASURES["embeddings"].path(name))
        distance = compare.distance(embeddings, source["embeddings"], where)
    if (projected := measured["projector"]) and source["projector"]:
        where = str(folder / MEASURES["projector"].path(name))
        distance = compare.projected(projected, source["projector"], where)
    samples = folder / MEASURES["humaneval"].sample_paths(name)[0]
    scores = scores_of(measured["humaneval"], measured["tasks"], samples)
    # The spec's `fits` and `gate` keep their names: they are part of specs of cards that exist.
    targeted = config["fits"].get(name)
    return Quant(
        name=name,
        file=split[0]["file"] if split else facts["file"],
        bytes=facts["bytes"],
        sha256=facts["sha256"],
        plan=PLAN.read(folder / "plans" / f"{name}.json"),
        tensors=read_plan(folder / "plans" / f"{name}.tsv"),
        recipe=_text(folder / "recipes" / f"{name}.yaml"),
        measured=measured,
        divergence=divergence,
        difference=difference,
        scores={name: score for name, score in scores.items() if name not in validity_warnings},
        parts=split or facts.get("parts") or [],
        source_perplexity=source["perplexity"],
        nearest=nearest,
        distance=distance,
        allocation=ALLOCATION.read(folder / "recipes" / f"{name}.json") if targeted else None,
        acceptance_test=bool(targeted and targeted["gate"]),
        checks=_checks(folder / "checks" / f"{name}.json", facts) if config.get("checks") else None,
    )


def _checks(path: Path, facts: Facts) -> Checks:
    """The check of a file; it must be of this one."""
    report = CHECKS.read(path)
    if report["sha256"] != facts["sha256"]:
        raise QuantmillError("is of another file", path, "delete it to have the file checked again")
    return report


def _nearest(folder: Path, name: str, config: settings.Card) -> Divergence | None:
    """The divergence of the same types rounded to nearest, where it is to be compared with the file's."""
    if not config.get("rounding", {}).get(name):
        return None
    facts = FACTS.read(folder / "nearest" / "gguf" / f"{config['model']}-{name}.json")
    return cast(Divergence, _report("kld", folder / "nearest" / f"{name}.kld.json", facts["sha256"]))


def _measurements(
    folder: Path, row: str, config: settings.Card, sha256: str, engine: str = MAINLINE, part: str = ""
) -> Measurements:
    """All measurements of a row; None for one that the config does not ask for, or that cannot be taken: in
    its engine, or of its `part` of the model, which is `none` of a draft head, or `only` that.
    """

    def is_taken(measure: Measure) -> bool:
        if part == "only" or (part == "none" and measure.name == "draft"):
            return False
        return measure.runs_in(engine) or (measure.name == "served" and config.get("served_in_ik", False))

    reports = {
        name: _report(name, folder / measure.path(row), sha256)
        if config.get(name) and is_taken(measure)
        else None
        for name, measure in MEASURES.items()
    }
    return cast(Measurements, reports)


def _report(measure: str, path: Path, sha256: str) -> Any:
    """A file below bench/; it must be of the file with that sha256."""
    report = OF_MEASURE[measure].read(path)
    if report["model_sha256"] != sha256:
        raise QuantmillError("measured on another file", path, "delete it to have it measured again")
    return report


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise QuantmillError("no such file", path) from None
