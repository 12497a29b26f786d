"""The choices: every quantizable tensor at every candidate type, with its exact bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantmill.errors import QuantmillError
from quantmill.formats import types
from quantmill.formats.ggufio import Tensor
from quantmill.formats.imatrix import Imatrix
from quantmill.formats.output import llama_order
from quantmill.formats.plan import PlanRow
from quantmill.measure.moments import Moments
from quantmill.model.roles import layer_of, role_of
from quantmill.quantize.kernels import Task
from quantmill.quantize.write import Source, importance_of, tasks


@dataclass(frozen=True)
class Choice:
    """One tensor at one type: the row that a plan would have for it, and how it is quantized.

    `importance`, f32 [matrices, columns], weighs the error. It is given for all
    types, also for those whose quantizer takes none.
    """

    row: PlanRow
    task: Task
    importance: NDArray[np.float32] | None

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.row.name

    @property
    def type(self) -> str:
        """The type."""
        return self.row.type

    @property
    def unchanged(self) -> bool:
        """Whether the source has this type already: nothing is lost."""
        return self.row.type == self.row.source_type

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return self.row.bytes * 8 / self.row.elements

    def __str__(self) -> str:
        return f"{self.name} at {self.type}"


def choices(
    source: Source,
    quantizable: frozenset[str],
    candidates: Sequence[str],
    imatrix: Imatrix | None,
    moments: Moments | None = None,
) -> tuple[list[Choice], list[str]]:
    """Every choice, by tensor in the order of a file and then by size; and those left out, in words.

    A candidate whose blocks do not fit a tensor's rows is replaced by the type
    that llama.cpp falls back to; each type is taken once. A type that needs
    importance values is left out for tensors that have none. With `moments` as for `tasks`.
    """
    rows, left_out = [], []
    for name in llama_order(quantizable & source.tensors.keys()):
        tensor = source.tensors[name]
        has_importance = imatrix is not None and name in imatrix.entries
        for type_name in _types(tensor, candidates):
            if has_importance or type_name == tensor.type or not types.needs_imatrix(type_name, name):
                rows.append(_row(tensor, type_name))
            else:
                left_out.append(f"{name} at {type_name}: it needs importance values, and there are none")
    if not rows:
        raise QuantmillError(
            "no candidate type suits any tensor", cure="give `sensitivity.types` other types"
        )
    importance = {row.name: importance_of(row, imatrix) for row in rows}
    todo = zip(rows, tasks(rows, source, imatrix, moments=moments), strict=True)
    return [Choice(row, task, importance[row.name]) for row, task in todo], left_out


def _types(tensor: Tensor, candidates: Sequence[str]) -> list[str]:
    """The types that this tensor would get, each once, smallest first."""
    possible = {types.fallback(type_name, tensor.shape[0]) for type_name in candidates}
    return sorted(possible, key=lambda name: (types.tensor_bytes(name, tensor.shape), name))


def _row(tensor: Tensor, type_name: str) -> PlanRow:
    return PlanRow(
        name=tensor.name,
        role=role_of(tensor.name),
        layer=layer_of(tensor.name),
        shape=tensor.shape,
        source_type=tensor.type,
        type=type_name,
        bytes=types.tensor_bytes(type_name, tensor.shape),
        reason="",
    )
