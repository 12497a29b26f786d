"""The reports of what is measured of a file, in `bench/<row>/`."""

from typing import Annotated, Any, Final, NotRequired, TypedDict

from quantmill.formats.devices import Placed
from quantmill.formats.drafts import DRAFTS, Accepted
from quantmill.formats.projected import PROJECTED
from quantmill.formats.report import Report
from quantmill.formats.settings import Answers
from quantmill.formats.settings import Tasks as TasksSettings
from quantmill.formats.statistics import Distribution, Mean

Engine = Annotated[str, "ik, where it was measured in ik_llama.cpp; absent: llama.cpp"]


class Value(TypedDict):
    """A value with its standard error."""

    value: float
    error: float


class Differences(Distribution):
    """The same with the root mean square."""

    rms: float
    rms_error: float


class ByChunk(TypedDict):
    """The mean of each chunk."""

    kld: list[float]
    nll: list[float]
    nll_reference: list[float]
    same_top: list[float]


class Gap(TypedDict):
    """What the reduced form of the predictions is off by, on those that are stored whole."""

    predictions: int
    kld: Annotated[float, "over the whole vocabulary"]
    mean: Annotated[float, "of that less the divergence by the reduced form"]
    error: float


class ReferenceForm(TypedDict):
    """The settings of the reduced form in which the source's predictions are stored."""

    threshold: Annotated[float, "tokens above this probability are stored exactly"]
    most_of_vocabulary: Annotated[float, "share of the vocabulary that is stored at most"]
    samples: Annotated[int, "tokens drawn from the rest"]


class Reference(ReferenceForm):
    """The reduced form in which the source's predictions are stored."""

    tokens: Annotated[float, "stored of a prediction, mean"]
    mass: Annotated[float, "their probability, mean"]
    least_mass: float
    gap: Gap


class Described(TypedDict):
    """llama-perplexity's statistics of the predictions."""

    kld: Annotated[Distribution, "nats"]
    p_diff: Annotated[Differences, "change of the probability of the token that came; a share"]
    same_top: Annotated[Mean, "share of predictions whose most likely token is the source's"]
    perplexity: Value
    perplexity_reference: Value
    correlation: Annotated[float, "of ln PPL"]
    log_ratio: Mean
    ratio: Value
    difference: Annotated[Value, "of the perplexities, their errors correlated"]
    by_chunk: ByChunk
    reference: Reference


class Elsewhere(TypedDict):
    """What the same model predicts on the CPU, beside its predictions on devices: the noise between both."""

    chunks: int
    mean: Annotated[float, "KL divergence, nats"]
    max: float


class Divergence(Described, Placed):
    """The KL divergence of a file's predictions from the source's."""

    corpus: str
    chunks: int
    context: int
    tokens: Annotated[int, "scored predictions"]
    model_sha256: str
    reference_sha256: str
    seconds: float
    engine: NotRequired[Engine]
    cpu: NotRequired[Annotated[Elsewhere, "of the source on devices"]]


class Perplexity(Placed):
    """The perplexity of a file."""

    corpus: str
    chunks: int
    context: int
    tokens: int
    perplexity: float
    error: float
    nll: Annotated[list[float], "mean of each chunk"]
    seconds: float
    model_sha256: str
    engine: NotRequired[Engine]


class ByText(TypedDict):
    """The value of each text; `rank` and `same_first` of those that others are ranked for."""

    distance: list[float]
    rank: list[float]
    same_first: list[float]


class Compared(TypedDict):
    """What a file changes of embeddings, or of scores."""

    distance: Annotated[
        Distribution,
        "1 less the cosine; of scores half the squared difference over the variance of the source's",
    ]
    rank: Annotated[Mean, "Spearman's correlation of the order of the other texts, or of documents"]
    same_first: Annotated[Mean, "share of texts for which both put the same one first"]
    by_chunk: ByText


class Embeddings(Compared, Placed):
    """How far a file's embeddings, or a reranker's scores, are from the source's."""

    corpus: str
    chunks: Annotated[int, "each is one text; of a reranker a query and a document"]
    context: int
    pooling: Annotated[str, "mean, cls or last; rank: a reranker"]
    values: Annotated[int, "of an embedding; 1 of a score"]
    texts: Annotated[int, "embedded; of a reranker pairs of a query and a document"]
    seconds: float
    model_sha256: str
    reference_sha256: str


class Rate(TypedDict):
    """Tokens a second."""

    tokens: int
    mean: float
    sd: float
    samples: list[float]


class Machine(TypedDict):
    """The machine that measured."""

    cpu: str
    cores: int
    memory_bytes: int
    host: NotRequired[Annotated[str, "its name: a node of a cluster"]]
    load: NotRequired[Annotated[list[float], "the load average of a minute, before and after"]]


class Speed(Placed):
    """llama-bench's pp and tg."""

    prompt: Rate
    generate: Rate
    threads: int
    backend: str
    machine: Machine
    model_sha256: str
    engine: NotRequired[Engine]


class ServedRate(TypedDict):
    """Tokens a second, over the repetitions."""

    mean: float
    sd: float
    samples: list[float]


class Workload(TypedDict):
    """One kind of request."""

    name: str
    prompt_tokens: Annotated[float, "mean, with a BOS"]
    generated_tokens: float
    prefill: Annotated[ServedRate, "the prompt's tokens over the time to the first piece of text"]
    decode: Annotated[ServedRate, "the tokens after the first over the time from there to the last"]


class Drafting(Accepted):
    """The same workloads with drafts of one length."""

    workloads: list[Workload]


class Gpu(TypedDict):
    """The devices whose memory grew by 64 MiB or more while the server ran, added up."""

    name: str
    power_w: Annotated[float, "mean"]
    temperature_c: Annotated[float, "highest"]
    memory_bytes: Annotated[int, "that the server took"]


class Served(TypedDict):
    """Speed behind a server."""

    server: Annotated[str, "name and version"]
    workloads: list[Workload]
    drafts: NotRequired[Annotated[list[Drafting], "empty where the file has no draft head"]]
    gpu: Annotated[Gpu | None, "null where no device is used, or no NVIDIA driver is there"]
    threads: int
    machine: Machine
    model_sha256: str


class Audits(TypedDict):
    """Answers that are odd."""

    empty: int
    fenced: int
    verbatim: Annotated[int, "the authors' own solution"]
    cut_off: Annotated[int, "by max_tokens"]
    repetition: int


class Failures(TypedDict):
    """Answers that failed, by kind."""

    wrong: int
    syntax: int
    error: int
    timeout: int
    limits: int


class HumanEvalSettings(Answers):
    """The config's, and what it was measured with."""

    file: Annotated[str, "base name of the problems"]
    confined: Annotated[bool, "whether the code ran in the sandbox"]


class HumanEval(Placed):
    """Code that a model wrote, run against tests."""

    problems: int
    passed: int
    pass_at_1: float
    interval: Annotated[list[float], "low and high: Wilson, 95 %"]
    audits: Audits
    failures: Failures
    generated_tokens: int
    tokens_per_s: Annotated[float, "of `seconds`"]
    seconds: Annotated[float, "of generating"]
    prompt_seconds: Annotated[float, "of the prompts, before it"]
    settings: HumanEvalSettings
    model_sha256: str


class Sample(TypedDict):
    """An answer to a problem of HumanEval."""

    task_id: str
    answer: str
    code: Annotated[str, "that was run, without the tests"]
    passed: bool
    result: Annotated[str, "passed, or the kind of failure"]
    message: str
    tokens: int
    empty: bool
    fenced: bool
    verbatim: bool
    cut_off: bool
    repetition: bool


class Task(TypedDict):
    """One task and metric of lm-eval."""

    name: str
    metric: Annotated[str, "such as acc; with lm-eval's filter where it has one: exact_match (strict-match)"]
    value: float
    stderr: float | None
    samples: int | None
    chance: Annotated[float | None, "what guessing gives of multiple choice"]


class Tasks(Placed):
    """Tasks of lm-eval."""

    tasks: list[Task]
    settings: Annotated[TasksSettings, "the config's, and lm-eval's version"]
    model_sha256: str


DIVERGENCE: Final = Report[Divergence](
    "bench/<row>/kld.json",
    "measure.divergence",
    (Divergence,),
    "In `bench/source/` it is the source's divergence from itself, the noise floor: 0.",
)
PERPLEXITY: Final = Report[Perplexity](
    "bench/<row>/perplexity.json",
    "measure.perplexity",
    (Perplexity,),
    "`bench/source/` is the source itself.",
)
EMBEDDINGS: Final = Report[Embeddings](
    "bench/<row>/embeddings.json",
    "measure.embeddings",
    (Embeddings,),
    "Of encoders and rerankers. In `bench/source/` the source beside itself: 0.",
)
SPEED: Final = Report[Speed]("bench/<row>/speed.json", "measure.speed", (Speed,), "Rates in tokens a second.")
SERVED: Final = Report[Served]("bench/<row>/served.json", "serve.measure", (Served,), "As a client sees it.")
HUMANEVAL: Final = Report[HumanEval](
    "bench/<row>/humaneval.json", "evaluate.humaneval", (HumanEval,), "pass@1, greedy."
)
SAMPLES: Final = Report[Sample](
    "bench/<row>/humaneval.jsonl",
    "evaluate.humaneval",
    (Sample,),
    "An answer a line, in the problems' order.",
)
TASKS: Final = Report[Tasks](
    "bench/<row>/tasks.json", "evaluate.tasks", (Tasks,), "By lm-eval's own scoring."
)

OF_MEASURE: Final[dict[str, Report[Any]]] = {
    report.path.rpartition("/")[2].removesuffix(".json"): report
    for report in (DIVERGENCE, PERPLEXITY, EMBEDDINGS, PROJECTED, DRAFTS, SPEED, SERVED, HUMANEVAL, TASKS)
}
"""The reports by the names of `measures.MEASURES`."""
