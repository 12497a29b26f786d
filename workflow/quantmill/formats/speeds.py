"""The report of how fast a machine multiplies by weights of each type."""

from typing import Annotated, Final, NotRequired, TypedDict

from quantmill.formats.measurements import Machine
from quantmill.formats.report import Report


class Times(TypedDict):
    """Seconds."""

    median: float
    low: Annotated[float, "the least"]
    high: Annotated[float, "the most"]
    samples: Annotated[int, "in which the system took no core away, where there were any"]


class TypeSpeed(TypedDict):
    """A type and a shape of weights, on a device."""

    device: str
    columns: int
    rows: int
    matrices: Annotated[int, "experts, or heads"]
    used: Annotated[int, "experts of a token; 0: all matrices"]
    type: str
    buffer: Annotated[str, "where ggml has such weights: `CPU_REPACK` are rearranged when they are loaded"]
    generate: Annotated[Times, "of a multiplication of one token"]
    prompt: Annotated[Times, "of a token among many"]


class SpeedDevice(TypedDict):
    """A device that was measured."""

    name: str
    description: str


class Speeds(TypedDict):
    """How fast this machine is at each type."""

    machine: Machine
    threads: int
    devices: Annotated[list[SpeedDevice], "the one of the model first, the CPU last"]
    types: list[TypeSpeed]
    source: Annotated[Times | None, "of a token that the source generates; null where it was not measured"]
    why_not: NotRequired[Annotated[str, "why it was not"]]


SPEEDS: Final = Report[Speeds](
    "speeds.json",
    "budget.speed",
    (Speeds,),
    "Of a model with a recipe that has a floor `tg`. Measured once on a machine: the store has the times by "
    "processor, threads, device and engine. Delete it to have another machine's.",
)
