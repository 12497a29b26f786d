"""The reports of an importance matrix and of the calibration of activations."""

from typing import Annotated, Final, NotRequired, TypedDict

from quantmill.formats.devices import Placed
from quantmill.formats.report import Report


class _Place(TypedDict):
    name: str
    role: str
    layer: int


class Statistics(TypedDict):
    """The statistics of one tensor's importance values, as `llama-imatrix --show-statistics` prints them."""

    columns: int
    matrices: int
    count_min: Annotated[int | float, "tokens of the matrix that saw the fewest"]
    count_max: int | float
    sum: Annotated[float | None, "of the mean squares of the columns; null where no expert saw a token"]
    mean: float | None
    sd: float | None
    min: float | None
    max: float | None
    active: Annotated[float | None, "share above 1e-5"]
    entropy: Annotated[float | None, "bits, of the values as shares of their sum"]
    z_over_1: Annotated[float | None, "share more than one standard deviation above the mean"]


class ImatrixEntry(_Place, Statistics):
    """The importance values of one tensor."""

    cosine: Annotated[float | None, "to the same role one layer before"]


class UnderSampled(TypedDict):
    """An expert that saw few tokens."""

    name: str
    expert: int
    count: Annotated[int | float, "tokens"]


class CalibrationPerplexity(TypedDict):
    """The perplexity on a sample of the calibration chunks."""

    perplexity: float
    error: float
    chunks: int
    tokens: int


class Imported(TypedDict):
    """The file that an imatrix was given as."""

    file: Annotated[str, "base name"]
    sha256: str
    dataset: Annotated[str | None, "as the file names it"]


class Imatrix(Placed):
    """Coverage of an importance matrix."""

    corpus: NotRequired[str]
    chunks: int | None
    context: Annotated[int | None, "tokens of a chunk"]
    tokens: int | None
    seconds: NotRequired[Annotated[float, "that the store's units took, whenever that was"]]
    entries: list[ImatrixEntry]
    through_head: NotRequired[Annotated[list[str], "tensors whose values came through the draft head (MTP)"]]
    missing: Annotated[list[str], "quantizable tensors without importance values"]
    experts_under_floor: Annotated[list[UnderSampled], "experts that saw fewer tokens than `floor`"]
    floor: Annotated[int, "tokens"]
    perplexity: NotRequired[
        Annotated[CalibrationPerplexity | None, "null where the model predicts no next token"]
    ]
    imported: NotRequired[Imported]
    warnings: list[str]


class Activations(TypedDict):
    """The largest inputs of the MLP weights."""

    corpus: str
    chunks: int
    context: int
    largest: Annotated[
        dict[str, float],
        "by the weight's name in the GGUF, the largest magnitude that entered it; of experts, of all of them",
    ]


IMATRIX: Final = Report[Imatrix](
    "imatrix.json",
    "measure.imatrix",
    (Imatrix,),
    "An importance matrix that was given as a file has the same report, made by `imatrix.imported`: "
    "`chunks`, `context` and `tokens` are null where the file does not give them.",
)
ACTIVATIONS: Final = Report[Activations](
    "activations.json",
    "checkpoint.calibrate",
    (Activations,),
    "Of a checkpoint with a recipe of `scheme: W4A4`.",
)
