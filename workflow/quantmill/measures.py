"""The table of measures: what is measured of each file, the source among them.

Targets, specs, results and the card read this table. A new measure is one entry
here, one stage that writes its file, and one section of the card.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SOURCE: Final = "source"
"""The row of the bench that is the source itself, in the main engine."""

MAINLINE: Final = "mainline"
"""The engine llama.cpp, as plans and recipes name it."""


@dataclass(frozen=True)
class Measure:
    """One measure.

    `name` is the field under `bench:` in the config and under `config` in the
    card's spec, and the name of the file. `stage` is the stage that writes it,
    as specs name it. `samples` are further files that the stage writes to the
    same folder. `columns` are its columns in the card's main table, where
    `{prompt}` and the like are settings of the measurement. `section` is the
    heading of its section on the card.
    """

    name: str
    stage: str
    what: str
    section: str
    columns: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    chunked: bool = False
    """Whether it is measured on the chunks of a corpus."""
    only_mainline: bool = False
    """Whether only llama.cpp itself takes it, and no other engine: generated text and embeddings."""

    @property
    def file(self) -> str:
        """The name of its file in the folder of a row."""
        return f"{self.name}.json"

    def path(self, row: str) -> str:
        """Its file, relative to the folder of a model's results; `row` is a recipe, or the source."""
        return f"bench/{row}/{self.file}"

    def sample_paths(self, row: str) -> list[str]:
        """The further files of a row, as `path`."""
        return [f"bench/{row}/{name}" for name in self.samples]

    def runs_in(self, engine: str) -> bool:
        """Whether it can be taken of a file of this engine."""
        return engine == MAINLINE or not self.only_mainline


_ALL = (
    Measure(
        "kld",
        "measure.divergence",
        "KL divergence of its predictions from the source's",
        section="KL divergence",
        columns=("KLD", "99.9 %", "Same top"),
        chunked=True,
    ),
    Measure(
        "perplexity",
        "measure.perplexity",
        "perplexity on a held-out text",
        section="Perplexity",
        columns=("PPL", "Change to the source"),
        chunked=True,
    ),
    Measure(
        "embeddings",
        "measure.embeddings",
        "distance of its embeddings, or of a reranker's scores, from the source's",
        section="Embeddings",
        columns=("Distance", "Rank correlation", "Same first"),
        chunked=True,
        only_mainline=True,
    ),
    Measure(
        "projector",
        "measure.projector",
        "distance of a projector's vectors of pictures and sounds from the source's",
        section="Projector",
        columns=("Distance", "Relative error", "KLD of the answer", "Same top"),
        only_mainline=True,
    ),
    Measure(
        "draft",
        "measure.draft",
        "share of the draft head's tokens that the model accepts, by draft length",
        section="Draft head",
        chunked=True,
        only_mainline=True,
    ),
    Measure(
        "speed",
        "measure.speed",
        "tokens a second, as llama-bench measures it",
        section="Speed",
        columns=("pp{prompt} t/s", "tg{generate} t/s"),
    ),
    Measure(
        "served",
        "serve.measure",
        "tokens a second over HTTP, as a client of a server sees it",
        section="Speed over HTTP",
        only_mainline=True,
    ),
    Measure(
        "humaneval",
        "evaluate.humaneval",
        "share of programming problems solved",
        section="HumanEval",
        columns=("HumanEval",),
        samples=("humaneval.jsonl",),
        only_mainline=True,
    ),
    Measure(
        "tasks",
        "evaluate.tasks",
        "scores in tasks of lm-eval",
        section="Tasks",
        only_mainline=True,
    ),
)

MEASURES: Final[dict[str, Measure]] = {measure.name: measure for measure in _ALL}
"""All measures by name, in the order of the card's columns."""


def taken_in(engine: str) -> tuple[Measure, ...]:
    """The measures that can be taken of a file of this engine, in order."""
    return tuple(measure for measure in MEASURES.values() if measure.runs_in(engine))
