"""One file of a model: its facts, its plan, its measurements, and how far it is from the source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

from quantmill.formats.allocation import Allocation, Plan
from quantmill.formats.checks import Checks
from quantmill.formats.drafts import Drafts
from quantmill.formats.measurements import (
    Divergence,
    Embeddings,
    HumanEval,
    Perplexity,
    Served,
    Speed,
    Tasks,
)
from quantmill.formats.plan import PlanRow
from quantmill.formats.projected import Projected
from quantmill.formats.publication import Part
from quantmill.formats.source import RecipeMemory
from quantmill.judge import compare
from quantmill.measures import MAINLINE

DECODER: Final = "decoder"
"""The kind of a model that continues a text, as check.json names it."""


class Measurements(TypedDict):
    """The reports of one row of the bench, by the names of `measures.MEASURES`; None where not taken."""

    kld: Divergence | None
    perplexity: Perplexity | None
    embeddings: Embeddings | None
    projector: Projected | None
    draft: Drafts | None
    speed: Speed | None
    served: Served | None
    humaneval: HumanEval | None
    tasks: Tasks | None


@dataclass(frozen=True)
class Quant:
    """The file of one recipe.

    `tensors` are the rows of the plan.
    `divergence` and `difference` (of the perplexities) are the paired ones to
    the source; there is no `divergence` where the source's own is not valid. `distance` is that of the
    embeddings, of a model that gives some in place of predictions.
    `scores` are the evaluations that tell files apart, by name. `allocation` is
    the report of a size-targeted recipe, `acceptance_test` whether the file must
    beat its baseline to be recommended. `memory` are its tables in memory.json.
    `parts` are the files of a split one; the first is `file`.
    `source_perplexity` is the source's perplexity.json in the file's own engine.
    `nearest` is the divergence of the same types rounded to nearest, of a file of gptq. `checks` is its
    report in checks/.
    """

    name: str
    file: str
    bytes: int
    sha256: str
    plan: Plan
    tensors: list[PlanRow]
    recipe: str
    measured: Measurements
    divergence: compare.Paired | None
    difference: compare.Difference | None
    scores: dict[str, compare.Score] = field(default_factory=dict)
    allocation: Allocation | None = None
    acceptance_test: bool = False
    memory: RecipeMemory | None = None
    parts: list[Part] = field(default_factory=list)
    source_perplexity: Perplexity | None = None
    nearest: Divergence | None = None
    checks: Checks | None = None
    distance: compare.Paired | None = None

    @property
    def has_head(self) -> bool:
        """Whether it has the tensors of a draft head, whatever else it holds."""
        return any(row.role == "nextn" for row in self.tensors)

    @property
    def alone(self) -> bool:
        """Whether it holds a draft head alone."""
        return self.plan.get("mtp") == "only"

    @property
    def failures(self) -> list[str]:
        """What is wrong with the file, a line each."""
        return self.checks["failures"] if self.checks else []

    @property
    def measure(self) -> str | None:
        """What its loss is measured by: `kld`, else `perplexity`; `embeddings` of a model without either."""
        measured = {"kld": self.divergence, "perplexity": self.difference, "embeddings": self.distance}
        return next((name for name, loss in measured.items() if loss), None)

    @property
    def loss(self) -> compare.Paired | None:
        """How far it is from the source: by KL divergence (nats), the first measure, else by perplexity; by
        the distance of embeddings.
        """
        return self.divergence or self.difference or self.distance

    def against(self, other: Quant) -> compare.Paired:
        """The paired difference to another file, by the same measure; one must have been taken.

        Two engines round the same weights differently. So each file is compared with the source in its own
        engine.
        """
        ours, theirs = self.measured["kld"], other.measured["kld"]
        if self.divergence and other.divergence and ours and theirs:
            return compare.divergence(ours, theirs)
        mine, its = self.measured["embeddings"], other.measured["embeddings"]
        if mine and its:
            return compare.distance(mine, its)
        seen, shown = self.measured["projector"], other.measured["projector"]
        if seen and shown:
            return compare.projected(seen, shown)
        return compare.paired(self._beyond_source, other._beyond_source)

    @property
    def _beyond_source(self) -> Perplexity:
        """Its perplexity.json, with the nll of each chunk less the source's."""
        perplexity = self.measured["perplexity"]
        assert perplexity is not None
        assert self.source_perplexity is not None
        pairs = zip(perplexity["nll"], self.source_perplexity["nll"], strict=True)
        return {**perplexity, "nll": [ours - source for ours, source in pairs]}

    @property
    def bpw(self) -> float:
        """Bits per weight of the whole file."""
        return float(self.plan["bpw"])

    @property
    def type(self) -> str:
        """The type that holds the most bytes."""
        return str(self.plan["by_type"][0]["type"])

    @property
    def rounding(self) -> str:
        """How its weights are rounded: `nearest` or `gptq`."""
        return self.plan.get("rounding", "nearest")

    @property
    def engine(self) -> str:
        """The engine that can load it, as plans name it."""
        return str(self.plan["engine"])

    @property
    def needs_other_engine(self) -> bool:
        """Whether llama.cpp itself cannot load it."""
        return self.engine != MAINLINE

    @property
    def content(self) -> tuple[Any, ...]:
        """What decides the tensors' bytes: types, engine, rounding, whether the imatrix is used."""
        types = {tensor.name: tensor.type for tensor in self.tensors}
        return types, self.plan["engine"], self.rounding, self.plan["imatrix"]
