"""The reports of finished files: quantized ones, their parts, checkpoints, what is withheld."""

from pathlib import Path
from typing import Annotated, Final, NotRequired, TypedDict

from quantmill.errors import QuantmillError
from quantmill.files import read_json
from quantmill.formats.report import Report


class Part(TypedDict):
    """One file with its digest."""

    file: str
    bytes: int
    sha256: str


class Facts(TypedDict):
    """A quantized file."""

    file: Annotated[str, "below `gguf/`; of a split one its first part"]
    bytes: Annotated[int, "of all parts"]
    sha256: Annotated[str, "of the file; of a split one, of the parts' sha256s joined by newlines"]
    tensors: int
    measured_as: NotRequired[
        Annotated[
            str,
            "the sha256 without the config's `metadata`, by which measurements know the file: they stay "
            "where metadata change; absent: `sha256`",
        ]
    ]
    engine: NotRequired[Annotated[str, "ik, where it quantized the file; absent: llama.cpp"]]
    parts: NotRequired[Annotated[list[Part], "where the recipe is split"]]


def files_of(facts: Facts) -> list[Part]:
    """The parts of a split file, or the file itself."""
    whole: Part = {"file": facts["file"], "bytes": facts["bytes"], "sha256": facts["sha256"]}
    return facts.get("parts", [whole])


def model_sha256(path: Path) -> str:
    """The sha256 by which measurements know a GGUF, of its report: `model.json`, or a quantized file's."""
    report = read_json(path)
    if not isinstance(report, dict) or not isinstance(report.get("sha256"), str):
        raise QuantmillError("no field sha256", path, "delete it to have it made again")
    return str(report.get("measured_as", report["sha256"]))


Parts = dict[str, list[Part]]
"""By recipe, the parts of each GGUF that is over `publish: {split}`; `file` is its path in the repository."""


class Difference(TypedDict):
    """A paired difference with its 95 % interval; nats."""

    mean: float
    low: float
    high: float


class WithheldFile(TypedDict):
    """A file that is not offered, and why."""

    recipe: str
    file: str
    bytes: int
    reason: Annotated[str, "dominated, collapsed or identical"]
    rival: Annotated[str | None, "the file that is better; null where this one has collapsed"]
    rival_bytes: int | None
    figure: Annotated[str, "in words"]
    measure: Annotated[str | None, "kld or perplexity"]
    difference: Annotated[
        Difference | None,
        "the file's loss less that of the better one, or its own where it has collapsed; null for a "
        "duplicate, and where it collapsed in HumanEval",
    ]


class Withheld(TypedDict):
    """The files that are not offered."""

    policy: Annotated[str, "the config's `publish: {withhold}`: dominated, collapsed or none"]
    withheld: list[WithheldFile]


class OfDtype(TypedDict):
    """A dtype's share of a checkpoint."""

    tensors: int
    bytes: int


class ErrorSpread(TypedDict):
    """Relative errors: the root of the summed squared differences over that of the summed squares."""

    matrices: int
    mean: float
    max: float
    name: Annotated[str, "of the worst"]


class QuantizedWeight(TypedDict):
    """A weight that was quantized."""

    name: str
    role: str
    shape: list[int]
    dtype: Annotated[str, "the source's"]
    error: float
    input: NotRequired[Annotated[float, "for W4A4: the largest magnitude that entered it"]]


class CheckpointSource(TypedDict):
    """The checkpoint that was exported."""

    bytes: Annotated[int, "of the tensors"]
    files: Annotated[list[str], "names of the weights' files"]
    dtypes: dict[str, OfDtype]


class Calibration(TypedDict):
    """The text that the activations were calibrated on."""

    corpus: str
    chunks: int
    context: int


class Checkpoint(TypedDict):
    """An exported checkpoint, as read back from the new files."""

    recipe: str
    form: Annotated[str, "modelopt or compressed-tensors"]
    quant_algo: Annotated[str, "W4A16_NVFP4 (weights only) or NVFP4"]
    calibration: Calibration | None
    architectures: Annotated[list[str] | None, "of config.json"]
    layers: int | None
    parameters: int
    quantized_parameters: Annotated[int, "of them as NVFP4"]
    bpw: Annotated[float, "bits per parameter of all tensors"]
    bytes: Annotated[int, "of all files"]
    files: list[Part]
    dtypes: dict[str, OfDtype]
    source: CheckpointSource
    exclude: Annotated[list[str], "patterns or names"]
    error: ErrorSpread
    by_role: Annotated[dict[str, ErrorSpread], "by role, such as gate_proj"]
    quantized: list[QuantizedWeight]


FACTS: Final = Report[Facts](
    "gguf/<model>-<recipe>.json",
    "quantize.write",
    (Facts,),
    "Of the GGUF beside it. A type's number in the header of a file of ik is ik_llama.cpp's own: those of "
    "its own types (133 to 158) mean nothing to llama.cpp, and 36 and 41 mean other types there, which no "
    "file made here has.",
)
PARTS: Final = Report[Parts](
    "parts.json",
    "publish.split",
    (Parts,),
    "Where `publish: {repo}` is set: by recipe, the parts of each GGUF that is over `publish: {split}`, "
    "with their paths in the repository; `{}` where there is none.",
)
WITHHELD: Final = Report[Withheld]("card/withheld.json", "card.write", (Withheld,), "What is not offered.")
CHECKPOINT: Final = Report[Checkpoint](
    "checkpoint/<model>-<recipe>.json",
    "checkpoint.export",
    (Checkpoint,),
    "What a card of the checkpoint can be written from.",
)
