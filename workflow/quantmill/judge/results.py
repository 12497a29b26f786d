"""What a card is written from: the files below `results/<model>/`, as docs/files.md gives them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from quantmill.errors import QuantmillError
from quantmill.files import read_json, read_table, split_lines
from quantmill.judge import compare, validity
from quantmill.judge.acceptance import Fit, fitted

SOURCE = "source"
MAINLINE = "mainline"
DECODER = "decoder"
HUMANEVAL = "HumanEval"

MEASURED: Final = ("kld", "perplexity", "speed", "served", "humaneval", "tasks")
"""What lies in `bench/<row>/<it>.json`, and what the card's config says was taken."""

GENERATED: Final = ("served", "humaneval", "tasks")
"""Of these, what mainline llama.cpp alone is asked for."""

_SURE = 1.96  # standard errors of a two-sided 95 % interval


@dataclass(frozen=True)
class Quant:
    """One recipe's file and all that is known of it; the measurements that were taken, else None.

    `divergence` and `difference` (of the perplexities) are the paired ones to
    the source; there is no `divergence` where the source's own condemns it.
    `scores` are the evaluations that tell files apart, by name. `tensors` are
    the rows of the plan with `parameters` and `bytes` as numbers. `fit` is the
    report of the allocation, and its `gate`, where the recipe was fitted to a budget;
    `memory` its tables in memory.json; `parts` the files of a split one, whose first is `file`; `tried`
    how far it was tried once it was written, `answered`, `loaded` or `read`; `origin` the source's
    perplexity.json in the file's own engine.
    """

    name: str
    file: str
    bytes: int
    sha256: str
    plan: dict[str, Any]
    tensors: list[dict[str, Any]]
    recipe: str
    kld: dict[str, Any] | None
    divergence: compare.Paired | None
    perplexity: dict[str, Any] | None
    difference: compare.Difference | None
    speed: dict[str, Any] | None
    served: dict[str, Any] | None = None
    humaneval: dict[str, Any] | None = None
    tasks: dict[str, Any] | None = None
    scores: dict[str, compare.Score] = field(default_factory=dict)
    fit: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)
    tried: str = "answered"
    origin: dict[str, Any] | None = None

    @property
    def measure(self) -> str | None:
        """What its loss is measured by: `kld`, else `perplexity`."""
        return "kld" if self.divergence else "perplexity" if self.difference else None

    @property
    def loss(self) -> compare.Paired | None:
        """How far from the source (nats): by KL divergence, the first measure, else by perplexity."""
        return self.divergence or self.difference

    def against(self, other: Quant) -> compare.Paired:
        """The paired difference to another file, by the same measure; one must have been taken.

        Of two engines each file counts beside the source in its own: they round the same weights differently.
        """
        if self.divergence and other.divergence and self.kld and other.kld:
            return compare.divergence(self.kld, other.kld)
        return compare.paired(self._beyond, other._beyond)

    @property
    def _beyond(self) -> dict[str, Any]:
        """Its perplexity.json, the nll of each chunk beyond the source's."""
        assert self.perplexity is not None
        assert self.origin is not None
        beyond = [ours - own for ours, own in zip(self.perplexity["nll"], self.origin["nll"], strict=True)]
        return {**self.perplexity, "nll": beyond}

    @property
    def bpw(self) -> float:
        """Bits per weight of the whole file."""
        return float(self.plan["bpw"])

    @property
    def type(self) -> str:
        """The type that holds the most bytes."""
        return str(self.plan["by_type"][0]["type"])

    @property
    def makes(self) -> tuple[Any, ...]:
        """What decides the tensors' bytes: the type of each, the engine, whether the imatrix is used."""
        types = {tensor["name"]: tensor["type"] for tensor in self.tensors}
        return types, self.plan["engine"], self.plan["imatrix"]


@dataclass(frozen=True)
class Results:
    """All measurements of one model; `quants` stand largest first; `check` is check.json."""

    facts: dict[str, Any]
    manifest: list[dict[str, str]]
    quants: list[Quant]
    kld: dict[str, Any] | None
    perplexity: dict[str, Any] | None
    speed: dict[str, Any] | None
    served: dict[str, Any] | None
    humaneval: dict[str, Any] | None
    tasks: dict[str, Any] | None
    imatrix: dict[str, Any] | None
    corpora: dict[str, dict[str, Any]]
    sensitivities: list[dict[str, str]]
    sensitivity: dict[str, Any] | None = None
    check: dict[str, Any] = field(default_factory=lambda: {"kind": DECODER, "warnings": []})
    doubts: dict[str, str] = field(default_factory=dict)
    scores: dict[str, compare.Score] = field(default_factory=dict)
    withheld: list[Quant] = field(default_factory=list)

    @cached_property
    def fits(self) -> list[Fit]:
        """The files that were fitted to a budget, and how they compare, with what is withheld too."""
        return fitted([*self.quants, *self.withheld])

    @property
    def rejected(self) -> dict[str, Fit]:
        """Those of them that are not recommended, by name."""
        return {fit.quant.name: fit for fit in self.fits if fit.rejected}

    @property
    def kind(self) -> str:
        """What kind of model it is, such as `decoder`: it decides how a file is used."""
        return str(self.check["kind"])

    @property
    def bpw(self) -> float:
        """Bits per weight of the source, the whole file."""
        return float(8 * self.facts["bytes"] / self.facts["parameters"])

    @cached_property
    def type(self) -> str:
        """The type that holds the most bytes of the source."""
        total: Counter[str] = Counter()
        for tensor in self.manifest:
            total[tensor["type"]] += int(tensor["bytes"])
        return total.most_common(1)[0][0]

    @property
    def measure(self) -> str | None:
        """What losses are measured by: `kld` unless its floor condemns it, else `perplexity`."""
        if self.kld is not None and "kld" not in self.doubts:
            return "kld"
        return None if self.perplexity is None else "perplexity"

    @property
    def unranked(self) -> str:
        """Why no file can be ranked by its loss, in words; empty where they can be."""
        if "perplexity" in self.doubts:
            return self.doubts["perplexity"]
        return self.doubts.get("kld", "") if self.measure is None else ""

    @property
    def floor(self) -> float | None:
        """The largest KL divergence of any prediction of the source from its own, in either direction."""
        return max(self.kld["kld"]["max"], -self.kld["kld"]["min"]) if self.kld is not None else None


def read(folder: Path, config: dict[str, Any]) -> Results:
    """Read the results of the recipes in `config`.

    Raises QuantmillError for a file that is missing or broken, for a
    measurement of another file, and for one of other chunks than the source's.
    """
    facts = read_json(folder / "model.json")
    source = _row(folder, SOURCE, config, facts["sha256"])
    engines = set(config.get("engines", {}).values()) - {MAINLINE}
    sources = {MAINLINE: source} | {
        engine: _row(folder, f"{SOURCE}-{engine}", config, facts["sha256"], engine) for engine in engines
    }
    imatrix = read_json(folder / "imatrix.json") if config["imatrix"] else None
    doubts = _doubts(folder, config, source)
    quants = [_quant(folder, name, config, sources, doubts) for name in config["recipes"]]
    check = read_json(folder / "check.json")
    # The tables are of a context that is kept in a cache, which other kinds have not.
    if check["kind"] == DECODER and (folder / "memory.json").exists():
        tables = read_json(folder / "memory.json")["recipes"]
        quants = [replace(quant, memory=tables.get(quant.name)) for quant in quants]
    sensitivity = read_json(folder / "sensitivity.json") if config["sensitivity"] else None
    stages = (imatrix, source["kld"], source["perplexity"], sensitivity)
    names = [stage["corpus"] for stage in stages if stage is not None and "corpus" in stage]
    return Results(
        facts=facts,
        manifest=read_table(folder / "manifest.tsv"),
        quants=sorted(quants, key=lambda quant: -quant.bytes),
        **source,
        imatrix=imatrix,
        corpora={name: read_json(folder / "corpus" / f"{name}.json") for name in dict.fromkeys(names)},
        sensitivities=read_table(folder / "sensitivity.tsv") if config["sensitivity"] else [],
        sensitivity=sensitivity,
        check=check,
        doubts=doubts,
        withheld=[],
        scores=scored(source["humaneval"], source["tasks"], folder / "bench" / SOURCE / "humaneval.jsonl"),
    )


def _doubts(folder: Path, config: dict[str, Any], source: dict[str, dict[str, Any] | None]) -> dict[str, str]:
    """What the source's own measurements condemn: by measure (or task), in words."""
    perplexity, kld, humaneval, tasks = (source[w] for w in ("perplexity", "kld", "humaneval", "tasks"))
    value = perplexity["perplexity"] if perplexity else kld["perplexity"]["value"] if kld else None
    files = [read_json(folder / "bench" / name / "kld.json") for name in config["recipes"] if kld]
    found = {"perplexity": validity.of_perplexity(value), "kld": validity.of_divergence(kld, files)}
    if humaneval:
        found[HUMANEVAL] = validity.of_score(HUMANEVAL, humaneval["pass_at_1"], 0.0, None)
    for name, task in by_name(tasks):
        found[name] = validity.of_score(name, task["value"], task["stderr"] or 0.0, task["chance"])
    return {what: text for what, text in found.items() if text}


def by_name(tasks: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """The entries of tasks.json by name; where a task has several metrics, theirs after it."""
    entries = tasks["tasks"] if tasks else []
    count = Counter(task["name"] for task in entries)
    return [
        (task["name"] if count[task["name"]] == 1 else f"{task['name']} ({task['metric']})", task)
        for task in entries
    ]


def scored(
    humaneval: dict[str, Any] | None, tasks: dict[str, Any] | None, samples: Path | None = None
) -> dict[str, compare.Score]:
    """A file's scores that have an interval, by the evaluation's name; `samples` is humaneval.jsonl."""
    found = {}
    if humaneval:
        low, high = humaneval["interval"]
        words = f"{humaneval['passed']} of {humaneval['problems']}"
        answers = split_lines(samples.read_text("utf-8")) if samples and samples.exists() else []
        passes = tuple(bool(json.loads(answer)["passed"]) for answer in answers)
        found[HUMANEVAL] = compare.Score(humaneval["pass_at_1"], low, high, words, passes)
    for name, task in by_name(tasks):
        if task["stderr"] is not None:
            value, reach = task["value"], _SURE * task["stderr"]
            words = f"{task['metric']}, {task['samples']} questions"
            found[name] = compare.Score(value, value - reach, value + reach, words)
    return found


def _quant(
    folder: Path,
    name: str,
    config: dict[str, Any],
    sources: dict[str, dict[str, dict[str, Any] | None]],
    doubts: dict[str, str],
) -> Quant:
    """A file beside the source in the file's own engine: two engines round the same weights differently."""
    facts = read_json(folder / "gguf" / f"{config['model']}-{name}.json")
    cut = read_json(folder / "parts.json").get(name) if config.get("parts") else None
    parts = cut or facts.get("parts") or []
    bench, gate = folder / "bench" / name, config["fits"]
    engine = config.get("engines", {}).get(name, MAINLINE)
    measured, source = _row(folder, name, config, facts["sha256"], engine), sources[engine]
    divergence = difference = None
    if (kld := measured["kld"]) and source["kld"] and "kld" not in doubts:
        divergence = compare.divergence(kld, source["kld"], str(bench / "kld.json"))
    if (perplexity := measured["perplexity"]) and source["perplexity"]:
        difference = compare.paired(perplexity, source["perplexity"], str(bench / "perplexity.json"))
    scores = scored(measured["humaneval"], measured["tasks"], bench / "humaneval.jsonl")
    return Quant(
        name=name,
        file=cut[0]["file"] if cut else facts["file"],
        bytes=facts["bytes"],
        sha256=facts["sha256"],
        plan=read_json(folder / "plans" / f"{name}.json"),
        tensors=[_tensor(row) for row in read_table(folder / "plans" / f"{name}.tsv")],
        recipe=_text(folder / "recipes" / f"{name}.yaml"),
        **measured,
        divergence=divergence,
        difference=difference,
        scores={name: score for name, score in scores.items() if name not in doubts},
        parts=parts,
        tried=facts["tried"],
        origin=source["perplexity"],
        fit=read_json(folder / "recipes" / f"{name}.json") | gate[name] if name in gate else None,
    )


def _row(
    folder: Path, name: str, config: dict[str, Any], sha256: str, engine: str = MAINLINE
) -> dict[str, dict[str, Any] | None]:
    """All measurements of a row, None for those that are not taken."""
    wanted = {what for what in MEASURED if engine == MAINLINE or what not in GENERATED}
    return {
        what: _measured(folder, name, what, config, sha256) if what in wanted else None for what in MEASURED
    }


def _measured(
    folder: Path, name: str, what: str, config: dict[str, Any], sha256: str
) -> dict[str, Any] | None:
    """A file below bench/, None where this is not measured; it must be of the file with that sha256."""
    if not config.get(what):
        return None
    path = folder / "bench" / name / f"{what}.json"
    measured: dict[str, Any] = read_json(path)
    if measured.get("model_sha256", sha256) != sha256:
        raise QuantmillError("measured on another file", path, "delete it to have it measured again")
    return measured


def _tensor(row: dict[str, str]) -> dict[str, Any]:
    parameters = 1
    for extent in row["shape"].split("x"):
        parameters *= int(extent)
    return {**row, "layer": int(row["layer"]), "bytes": int(row["bytes"]), "parameters": parameters}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise QuantmillError("no such file", path) from None
