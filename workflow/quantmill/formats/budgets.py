"""The budgets of size-targeted recipes, as the specs have them."""

from typing import Annotated, TypedDict


class MemoryBudget(TypedDict):
    """A device's memory."""

    total: Annotated[int, "bytes"]
    reserve: Annotated[int, "bytes left free"]
    context: Annotated[int, "tokens"]
    cache: Annotated[str, "the type of the KV cache"]


class PoolsBudget(TypedDict):
    """A GPU's memory, and the CPU's beside it."""

    gpu: Annotated[int, "bytes"]
    cpu: Annotated[int, "bytes"]
    reserve: Annotated[int, "bytes left free of each"]
    context: Annotated[int, "tokens"]
    cache: Annotated[str, "the type of the KV cache"]


class Budget(TypedDict, total=False):
    """One of the four."""

    size: Annotated[int, "bytes of the file"]
    bpw: Annotated[float, "bits per weight of the file"]
    memory: MemoryBudget
    pools: PoolsBudget
