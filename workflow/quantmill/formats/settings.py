"""The settings of the stages: the part `config` of their specs.

The keys are part of every spec. Renaming one would make finished files stale,
so some have names that the config and the code no longer use: `damage` is the
objective of an allocation, `gate` the acceptance test, `iso_disk` the models
of the same-size comparison.
"""

from typing import Any, NotRequired, TypedDict


class Fetch(TypedDict):
    """`model.fetch`."""

    repo: str
    file: str
    revision: str


class Convert(TypedDict):
    """`checkpoint.convert`."""

    to: str
    pre_tokenizer: str | None


class CorpusSource(TypedDict):
    """A source of `corpus.build`."""

    name: str
    column: NotRequired[str | None]
    rows: NotRequired[int | None]
    weight: float


class Corpus(TypedDict):
    """`corpus.build`."""

    corpus: str
    seed: int
    context: int
    chunks: int
    sources: list[CorpusSource]


class Chunks(TypedDict):
    """Whatever is measured on the chunks of a corpus."""

    corpus: str
    chunks: int
    context: int
    engine: NotRequired[str]


class Probes(Chunks):
    """`sensitivity.measure`."""

    minutes: float
    types: list[str]


class ImatrixFile(TypedDict):
    """What a GGUF says of the imatrix that it was made with."""

    file: str
    dataset: str | None
    chunks: int | None


class Render(TypedDict):
    """`recipe.render`."""

    recipe: str
    parameters: dict[str, Any]
    form: NotRequired[str]
    importance: NotRequired[dict[str, float]]


class Plan(TypedDict):
    """`recipe.plan`."""

    recipe: str
    imatrix: ImatrixFile | None


class MemoryBudget(TypedDict):
    """A device's memory: bytes in all, bytes left free, and the context (tokens) with its cache's type."""

    total: int
    reserve: int
    context: int
    cache: str


class Budget(TypedDict, total=False):
    """One of the three: bytes of the file, bits per weight of the file, or a memory."""

    size: int
    bpw: float
    memory: MemoryBudget


class Allocate(TypedDict):
    """`budget.allocate` and `budget.feasibility`; `measured`, of the latter, are the candidate types.

    `refit` is of a second round, which was removed: always empty.
    """

    recipe: str
    budget: Budget
    use_imatrix: str
    refit: list[str]
    types: list[str] | None
    harmonize: list[list[str]] | None
    pin: list[dict[str, Any]]
    at_least: dict[str, str]
    at_most: dict[str, str]
    engine: str
    damage: str
    imatrix: ImatrixFile | None
    measured: NotRequired[list[str]]


class Memory(TypedDict):
    """`model.memory`."""

    contexts: list[int] | None


class Quantize(TypedDict):
    """`quantize.write`."""

    imatrix: ImatrixFile | None
    engine: NotRequired[str]
    split: NotRequired[int]


class Speed(TypedDict):
    """`measure.speed`."""

    prompt: int
    generate: int
    repetitions: int
    engine: NotRequired[str]


class Workload(TypedDict):
    """A workload of `serve.measure`."""

    name: str
    prompt: int
    generate: int


class Served(TypedDict):
    """`serve.measure`."""

    workloads: list[Workload]
    repetitions: int


class HumanEval(TypedDict):
    """`evaluate.humaneval`."""

    limit: int | None
    max_tokens: int
    prompt: str
    instruction: str
    template: dict[str, bool | int | str]
    stop: list[str]
    parallel: int
    seconds: float
    memory: int
    accept_unsandboxed: bool


class Tasks(TypedDict):
    """`evaluate.tasks`."""

    names: list[str]
    include: str | None
    limit: int | None
    shots: int | None
    chat: bool
    context: int


class Export(TypedDict):
    """`checkpoint.export`."""

    recipe: str
    form: str


class Split(TypedDict):
    """`publish.split`."""

    model: str
    recipes: list[str]
    split: int
