"""What a card is written from: the files below `results/<model>/`, as docs/files.md gives them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quantmill.card import compare
from quantmill.card.fits import Fit, fitted
from quantmill.errors import QuantmillError
from quantmill.files import read_json, read_table

SOURCE = "source"


@dataclass(frozen=True)
class Quant:
    """One recipe's file and all that is known of it; `kld`, `perplexity` and `speed` where measured.

    `divergence` and `difference` (of the perplexities) are the paired ones to
    the source. `tensors` are the rows of the
    plan with `parameters` and `bytes` as numbers. `fit` is the report of the
    allocation, and its `gate`, where the recipe was fitted to a budget.
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
    fit: dict[str, Any] | None = None

    @property
    def loss(self) -> compare.Paired | None:
        """How far from the source (nats): by KL divergence, the first measure, else by perplexity."""
        return self.divergence or self.difference

    def against(self, other: Quant) -> compare.Paired:
        """The paired difference to another file, by the same measure; one must have been taken."""
        if self.kld and other.kld:
            return compare.divergence(self.kld, other.kld)
        assert self.perplexity is not None
        assert other.perplexity is not None
        return compare.paired(self.perplexity, other.perplexity)

    @property
    def bpw(self) -> float:
        """Bits per weight of the whole file."""
        return float(self.plan["bpw"])

    @property
    def type(self) -> str:
        """The type that holds the most bytes."""
        return str(self.plan["by_type"][0]["type"])

    @property
    def types(self) -> dict[str, str]:
        """The type of each tensor."""
        return {tensor["name"]: tensor["type"] for tensor in self.tensors}


@dataclass(frozen=True)
class Results:
    """All measurements of one model; `quants` stand largest first."""

    facts: dict[str, Any]
    manifest: list[dict[str, str]]
    quants: list[Quant]
    kld: dict[str, Any] | None
    perplexity: dict[str, Any] | None
    speed: dict[str, Any] | None
    imatrix: dict[str, Any] | None
    corpora: dict[str, dict[str, Any]]
    sensitivities: list[dict[str, str]]

    @cached_property
    def fits(self) -> list[Fit]:
        """The files that were fitted to a budget, and how they compare."""
        return fitted(self.quants)

    @property
    def rejected(self) -> dict[str, Fit]:
        """Those of them that are not recommended, by name."""
        return {fit.quant.name: fit for fit in self.fits if fit.rejected}

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
    def source_perplexity(self) -> float | None:
        """The source's own perplexity, where anything told it."""
        if self.perplexity is not None:
            return float(self.perplexity["perplexity"])
        return float(self.kld["perplexity"]["value"]) if self.kld is not None else None

    @property
    def absurd(self) -> bool:
        """Whether the source's own perplexity condemns the run."""
        return (self.source_perplexity or 0.0) > compare.ABSURD_PERPLEXITY

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
    kld = _measured(folder, SOURCE, "kld", config, facts["sha256"])
    perplexity = _measured(folder, SOURCE, "perplexity", config, facts["sha256"])
    imatrix = read_json(folder / "imatrix.json") if config["imatrix"] else None
    quants = [_quant(folder, name, config, kld, perplexity) for name in config["recipes"]]
    names = [stage["corpus"] for stage in (imatrix, kld, perplexity) if stage is not None]
    return Results(
        facts=facts,
        manifest=read_table(folder / "manifest.tsv"),
        quants=sorted(quants, key=lambda quant: -quant.bytes),
        kld=kld,
        perplexity=perplexity,
        speed=_measured(folder, SOURCE, "speed", config, facts["sha256"]),
        imatrix=imatrix,
        corpora={name: read_json(folder / "corpus" / f"{name}.json") for name in dict.fromkeys(names)},
        sensitivities=read_table(folder / "sensitivity.tsv") if config["sensitivity"] else [],
    )


def _quant(
    folder: Path,
    name: str,
    config: dict[str, Any],
    source_kld: dict[str, Any] | None,
    source_perplexity: dict[str, Any] | None,
) -> Quant:
    facts = read_json(folder / "gguf" / f"{config['model']}-{name}.json")
    bench, gate = folder / "bench" / name, config["fits"]
    kld = _measured(folder, name, "kld", config, facts["sha256"])
    divergence = difference = None
    if kld is not None and source_kld is not None:
        divergence = compare.divergence(kld, source_kld, str(bench / "kld.json"))
    perplexity = _measured(folder, name, "perplexity", config, facts["sha256"])
    if perplexity is not None and source_perplexity is not None:
        difference = compare.paired(perplexity, source_perplexity, str(bench / "perplexity.json"))
    return Quant(
        name=name,
        file=facts["file"],
        bytes=facts["bytes"],
        sha256=facts["sha256"],
        plan=read_json(folder / "plans" / f"{name}.json"),
        tensors=[_tensor(row) for row in read_table(folder / "plans" / f"{name}.tsv")],
        recipe=_text(folder / "recipes" / f"{name}.yaml"),
        kld=kld,
        divergence=divergence,
        perplexity=perplexity,
        difference=difference,
        speed=_measured(folder, name, "speed", config, facts["sha256"]),
        fit=read_json(folder / "recipes" / f"{name}.json") | gate[name] if name in gate else None,
    )


def _measured(
    folder: Path, name: str, what: str, config: dict[str, Any], sha256: str
) -> dict[str, Any] | None:
    """A file below bench/, None where this is not measured; it must be of the file with that sha256."""
    if not config[what]:
        return None
    path = folder / "bench" / name / f"{what}.json"
    measured: dict[str, Any] = read_json(path)
    if measured["model_sha256"] != sha256:
        raise QuantmillError("measured on another file", path, "delete it to have it measured again")
    return measured


def _tensor(row: dict[str, str]) -> dict[str, Any]:
    parameters = 1
    for extent in row["shape"].split("x"):
        parameters *= int(extent)
    return {**row, "layer": int(row["layer"]), "bytes": int(row["bytes"]), "parameters": parameters}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise QuantmillError("no such file", path) from None
