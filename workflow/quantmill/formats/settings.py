"""The settings of the stages: the part `config` of their specs.

The keys are part of every spec. Renaming one would make finished files stale,
so some have names that the config and the code no longer use: `damage` is the
objective of an allocation, `gate` the acceptance test, `iso_disk` the models
of the same-size comparison, `fits` the size-targeted recipes.

`OF_STAGE` names the type of each stage; a test holds every spec of a project
against it.
"""

from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

from quantmill.formats.budgets import Budget
from quantmill.formats.checks import CheckedFile
from quantmill.formats.general import Plain
from quantmill.formats.media import Media
from quantmill.formats.places import Upload
from quantmill.formats.source import HubFile, LockedCheckpoint

Rounding = Annotated[Literal["gptq"], "absent: to the nearest value"]
FileRounding = Annotated[Literal["gptq", "gptaq"], "absent: to the nearest value"]

Keep = Annotated[Literal["grid"], "absent: what lies on a grid is rounded like all else"]

Mtp = Annotated[
    Literal["none", "only"] | dict[str, str],
    "none: a file without the draft head; only: with the head alone; else types, by role or group of roles",
]

CHUNKS_A_UNIT: Final = 8
"""Chunks of a unit of the store, for those stages that evaluate some."""


class Empty(TypedDict):
    """A stage without settings."""


class Fetch(TypedDict):
    """`model.fetch`."""

    repo: str
    file: str
    revision: str


class Convert(TypedDict):
    """`checkpoint.convert`."""

    to: str
    pre_tokenizer: str | None
    projector: NotRequired[bool]


class Check(TypedDict):
    """`check.source`."""

    model: str


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
    mtp: NotRequired[bool]


class ImportedImatrix(TypedDict):
    """`imatrix.imported`."""

    file: Annotated[str, "base name"]


class Probes(Chunks):
    """`sensitivity.measure`."""

    minutes: float
    types: list[str]
    rounding: NotRequired[Rounding]


class ImatrixFile(TypedDict):
    """What a GGUF says of the imatrix that it was made with."""

    file: str
    dataset: str | None
    chunks: int | None
    mtp: NotRequired[Annotated[bool, "whether it has the draft head's tensors"]]


class Plan(TypedDict):
    """`recipe.plan`; `parameters`, `form` and `importance` of a recipe that is rendered from a template."""

    recipe: str
    imatrix: ImatrixFile | None
    parameters: NotRequired[dict[str, Any]]
    form: NotRequired[str]
    importance: NotRequired[dict[str, float]]
    rounding: NotRequired[FileRounding]
    keep: NotRequired[Keep]
    mtp: NotRequired[Mtp]


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
    rounding: NotRequired[Rounding]
    keep: NotRequired[Keep]
    mtp: NotRequired[Mtp]
    floor: NotRequired[Annotated[float, "tokens a second that a text is generated with, at least"]]


class TypeSpeeds(TypedDict):
    """`budget.speed`."""

    types: list[str]


class Memory(TypedDict):
    """`model.memory`."""

    contexts: list[int] | None
    projectors: NotRequired[Annotated[list[str], "files that are used beside the model's"]]


class Quantize(TypedDict):
    """`quantize.write`."""

    imatrix: ImatrixFile | None
    engine: NotRequired[str]
    split: NotRequired[int]
    header: NotRequired[Annotated[bool, "whether the first file of a split one has no tensors"]]
    rounding: NotRequired[FileRounding]
    keep: NotRequired[Keep]
    metadata: NotRequired[Annotated[dict[str, Plain], "keys of the file beside the source's"]]


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
    draft: NotRequired[Annotated[list[int], "draft lengths, beside none"]]


class Answers(TypedDict):
    """The settings of HumanEval that its report repeats."""

    limit: Annotated[int | None, "the first so many problems; null: all"]
    max_tokens: Annotated[int, "of an answer, at most"]
    prompt: Annotated[str, "chat or completion"]
    instruction: str
    template: Annotated[dict[str, bool | int | str], "variables of the chat template"]
    stop: Annotated[list[str], "texts that end an answer"]
    parallel: Annotated[int, "answers generated at once"]
    seconds: Annotated[float, "for the tests of an answer"]
    memory: Annotated[int, "bytes, for the tests of an answer"]


class HumanEval(Answers):
    """`evaluate.humaneval`."""

    accept_unsandboxed: bool


_LmEval = TypedDict("_LmEval", {"lm-eval": Annotated[str, "its version"]})


class Tasks(_LmEval):
    """`evaluate.tasks`."""

    names: list[str]
    include: Annotated[str | None, "a folder of task definitions"]
    limit: Annotated[int | None, "the first so many questions of each task; null: all"]
    shots: Annotated[int | None, "examples before each question; null: as the task says"]
    chat: Annotated[bool, "by the chat template"]
    context: Annotated[int, "tokens"]


class Export(TypedDict):
    """`checkpoint.export`."""

    recipe: str
    form: str


class Split(TypedDict):
    """`publish.split`."""

    model: str
    recipes: list[str]
    split: int


class Toolchain(TypedDict):
    """Versions of what made the files."""

    quantmill: str


class CheckpointCard(TypedDict):
    """`card.checkpoint`."""

    model: str
    card: Annotated[dict[str, Any], "the config's fields of that name"]
    toolchain: Toolchain


CardSource = TypedDict("CardSource", {"file": str, "from": Annotated[str, "in words"]})
"""The source's file, and where it is from."""


class AcceptanceTest(TypedDict):
    """The acceptance test of a size-targeted recipe, under its old name."""

    gate: Annotated[Any, "as in the config"]


class Card(TypedDict):
    """`card.write`."""

    model: str
    source: CardSource
    recipes: list[str]
    card: Annotated[dict[str, Any], "the config's fields of that name, the texts and `iso_disk`"]
    repo: str | None
    withhold: Literal["dominated", "collapsed", "none"]
    include: list[str]
    imatrix: bool
    sensitivity: bool
    kld: bool
    perplexity: bool
    speed: bool
    served: bool
    humaneval: bool
    tasks: bool
    fits: Annotated[dict[str, AcceptanceTest], "the size-targeted recipes"]
    toolchain: Annotated[dict[str, str], "versions of what made the files"]
    embeddings: NotRequired[bool]
    projector: NotRequired[bool]
    draft: NotRequired[bool]
    beside: NotRequired[Annotated[list[str], "files of its projectors, or a projector's language model"]]
    together: NotRequired[Annotated[dict[str, list[str]], "recipes of projectors in the same repository"]]
    engines: NotRequired[Annotated[dict[str, str], "by recipe; where one of them is ik"]]
    served_in_ik: NotRequired[Annotated[bool, "whether files of ik were served too"]]
    parts: NotRequired[bool]
    rounding: NotRequired[
        Annotated[dict[str, bool], "the recipes of gptq; whether each is compared with nearest"]
    ]
    verified: NotRequired[Annotated[bool, "whether verify.json is read"]]
    signed: NotRequired[Annotated[bool, "whether there is a lock.json.sig"]]
    checks: NotRequired[Annotated[bool, "whether the files were checked"]]


class LockedText(CorpusSource):
    """A file of a corpus."""

    sha256: str


class LockedCorpus(TypedDict):
    """A corpus."""

    seed: int
    context: Annotated[int, "tokens of a chunk"]
    chunks: int
    sources: list[LockedText]


class Lock(TypedDict):
    """`proof.lock`."""

    model: str
    recipes: dict[str, Quantize]
    hub: HubFile | None
    checkpoint: LockedCheckpoint | None
    corpora: dict[str, LockedCorpus]
    imatrix: ImatrixFile | None
    imported: Annotated[str | None, "sha256 of the imatrix that was given"]
    engines: Annotated[dict[str, str], "digest of each"]
    parts: Annotated[bool, "whether there is a parts.json"]
    quantmill: Annotated[str, "its version"]


class Verify(TypedDict):
    """`proof.verify`."""

    models: Annotated[dict[str, Literal["all", "sample"]], "how each is verified"]


class Sign(TypedDict):
    """`proof.sign`."""

    key: Annotated[str, "fingerprint"]


OF_STAGE: Final[dict[str, Any]] = {
    "model.fetch": Fetch,
    "checkpoint.convert": Convert,
    "model.manifest": Empty,
    "check.source": Check,
    "corpus.build": Corpus,
    "measure.imatrix": Chunks,
    "measure.moments": Chunks,
    "measure.cross": Chunks,
    "imatrix.imported": ImportedImatrix,
    "checkpoint.calibrate": Chunks,
    "sensitivity.measure": Probes,
    "sensitivity.imported": Empty,
    "budget.speed": TypeSpeeds,
    "budget.feasibility": Allocate,
    "budget.allocate": Allocate,
    "recipe.plan": Plan,
    "model.memory": Memory,
    "quantize.write": Quantize,
    "check.file": CheckedFile,
    "measure.divergence": Chunks,
    "measure.perplexity": Chunks,
    "measure.embeddings": Chunks,
    "measure.projector": Media,
    "measure.draft": Chunks,
    "measure.speed": Speed,
    "serve.measure": Served,
    "evaluate.humaneval": HumanEval,
    "evaluate.tasks": Tasks,
    "checkpoint.export": Export,
    "card.maps": Empty,
    "card.checkpoint": CheckpointCard,
    "card.write": Card,
    "publish.split": Split,
    "proof.lock": Lock,
    "proof.verify": Verify,
    "proof.sign": Sign,
    "publish.upload": Upload,
}
"""The type of each stage's settings."""
