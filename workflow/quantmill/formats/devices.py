"""Where a model was evaluated: which part of it was on which device. A part of several reports."""

from typing import Annotated, NotRequired, TypedDict


class Part(TypedDict):
    """What a device had of a model, in bytes."""

    device: str
    description: str
    weights: int
    cache: int
    compute: int


class Placement(TypedDict):
    """Where a model was."""

    layers: Annotated[int, "on devices; the output counts as one"]
    of: Annotated[int, "layers of the model"]
    devices: list[Part]


class Placed(TypedDict):
    """What a report has of devices."""

    devices: NotRequired[Annotated[list[Placement], "where its units were computed; absent: all on the CPU"]]
