"""The report of the second moments: which inputs were measured, of which weights, on how many tokens."""

from typing import Annotated, Final, TypedDict

from quantmill.formats.report import Report


class MomentsInput(TypedDict):
    """The input of one or several weights, and the unit of the store that holds its second moments."""

    name: Annotated[str, "the first of the weights that share it"]
    weights: Annotated[list[str], "all weights that share it"]
    columns: int
    matrices: Annotated[int, "1, or the experts of the weights"]
    blocks: Annotated[int, "diagonal blocks in which they are kept; 1: whole"]
    tokens: Annotated[list[int], "of each matrix"]
    key: Annotated[str, "of the unit in the store"]


class Moments(TypedDict):
    """The second moments of the inputs of a model's weights, for `rounding: gptq`."""

    corpus: str
    chunks: int
    context: Annotated[int, "tokens of a chunk"]
    model: Annotated[str, "digest of the source"]
    engine: Annotated[str, "digest of the engine"]
    inputs: list[MomentsInput]
    missing: Annotated[list[str], "quantizable weights whose input was never seen"]
    bytes: Annotated[int, "of all units in the store"]
    seconds: Annotated[float, "that the store's units took, whenever that was"]
    warnings: list[str]


MOMENTS: Final = Report[Moments](
    "moments.json",
    "measure.moments",
    (Moments,),
    "Of a model with a recipe of `rounding: gptq`. The moments themselves are units of the store.",
)
