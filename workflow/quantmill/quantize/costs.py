"""How long it takes to quantize, by type: rough figures, by which the remaining time is estimated."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Final

from quantmill.progress import Work

if TYPE_CHECKING:
    from quantmill.quantize.kernels import Task
    from quantmill.store import Store

# Nanoseconds an element of f16 on one core of an AMD EPYC (Zen 3) takes, with importance, in either
# engine's kernels: ggml_quantize_chunk, once the values are f32, and the validation.
_NANOSECONDS: Final = """
    4    f32 f16 bf16
    8    q8_0 q8_KV mxfp4 tq1_0 tq2_0 q1_0 q2_0
    30   nvfp4
    45   q4_0 q5_0
    60   q3_K q6_K q6_0
    150  q4_1 q5_1 q2_K q4_K q5_K
    220  iq1_m iq4_nl iq3_k
    280  iq1_s iq3_ks
    340  iq2_s iq4_xs iq4_k iq4_ks iq5_k iq5_ks iq2_kl
    430  iq3_s iq2_k
    530  iq2_xxs iq6_k
    650  iq3_xxs
    1000 iq2_xs iq4_kss iq2_ks
    1500 iq1_kt
    1900 iq2_kt
    4600 iq3_kt iq4_kt
"""
NANOSECONDS: Final[dict[str, float]] = {
    type_name: float(nanoseconds)
    for nanoseconds, *types in map(str.split, _NANOSECONDS.strip().split("\n"))
    for type_name in types
}
"""What an element takes on one core, by type."""

FEEDBACK_NANOSECONDS: Final = 0.15
"""What error feedback adds for an element and each column of its row."""

COPY_NANOSECONDS: Final = 3.0
"""What a byte of a file takes that is read, hashed and written."""

_COPY: Final = "copy"


def seconds(type_name: str, elements: int, *, columns: int = 0) -> float:
    """What one core takes for a tensor; `columns` of its rows where errors are fed back."""
    return elements * (NANOSECONDS[type_name] + FEEDBACK_NANOSECONDS * columns) / 1e9


def copying(size: float) -> float:
    """The seconds in which the bytes of a file are written that need not be computed."""
    return size * COPY_NANOSECONDS / 1e9


def of_tasks(tasks: Iterable[tuple[Task, int]], engine: str, store: Store, threads: int) -> list[Work]:
    """The expected seconds of each task with its size in the file; those in the store are only copied.

    `engine` is the digest of the process's engine. What is fed back is a kind of its own.
    """
    return [_of_task(task, size, engine, store, threads) for task, size in tasks]


def _of_task(task: Task, size: int, engine: str, store: Store, threads: int) -> Work:
    copied = copying(size)
    if task.type == task.source_type or store.has(task.key(engine)):
        return Work(_COPY, copied)
    columns = task.shape[0] if task.moments is not None else 0
    kind = f"{task.type} fed back" if columns else task.type
    return Work(kind, seconds(task.type, prod(task.shape), columns=columns) / threads + copied)
