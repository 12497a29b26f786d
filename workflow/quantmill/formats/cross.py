"""The report of what quantized weights do to the inputs of those after them in their layer."""

from typing import Annotated, Final, TypedDict

from quantmill.formats.moments import MomentsInput
from quantmill.formats.report import Report


class Cross(TypedDict):
    """The cross moments of the inputs that the weights before them in their layer change."""

    quantized: Annotated[str, "sha256 of the file whose inputs they are"]
    inputs: list[MomentsInput]
    bytes: Annotated[int, "of all units in the store"]
    seconds: Annotated[float, "that the store's units took, whenever that was"]


CROSS: Final = Report[Cross](
    "cross/<recipe>.json",
    "measure.cross",
    (Cross,),
    "Of a recipe of `rounding: gptaq`. The moments themselves are units of the store.",
)
