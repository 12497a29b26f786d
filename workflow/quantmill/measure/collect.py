"""Σx² of the inputs of every weight, as llama-imatrix collects them, through the eval callback.

llama-imatrix (tools/imatrix/imatrix.cpp) takes every multiplication whose
input is f32 with at least 16 rows and whose weight's name begins with `blk.`,
and every indirect one. Inputs that several weights share (q, k and v; gate and
up) are summed once. Once the last observed multiplication is done the rest of
the graph, the output head, is left uncomputed unless the logits are needed.
"""

from __future__ import annotations

import io
import json
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.graph import MatMul
from quantmill.engine.sums import squares
from quantmill.errors import QuantmillError
from quantmill.formats.imatrix import LEAST_ROWS


@dataclass
class Sums:
    """Σx² [matrices, columns] in f64 and the rows behind it [matrices, or 1 for them all]."""

    in_sum2: NDArray[np.float64]
    counts: NDArray[np.int64]

    def add(self, other: Sums) -> None:
        """Add the sums of other chunks."""
        self.in_sum2 += other.in_sum2
        self.counts += other.counts


@dataclass
class Shard:
    """What a run of chunks gave: sums by leader, each weight's leader, the nll of the sampled chunk."""

    sums: dict[str, Sums]
    leader: dict[str, str]
    nll: NDArray[np.float32]
    seconds: float

    def to_bytes(self) -> bytes:
        """As a unit of the store (npz)."""
        out = io.BytesIO()
        arrays: dict[str, Any] = {f"sum/{name}": entry.in_sum2 for name, entry in self.sums.items()}
        arrays |= {f"count/{name}": entry.counts for name, entry in self.sums.items()}
        facts = json.dumps({"leader": self.leader, "seconds": self.seconds})
        np.savez(out, nll=self.nll, facts=np.array(facts), **arrays)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Shard:
        """Read a unit of the store."""
        with np.load(io.BytesIO(data)) as arrays:
            facts = json.loads(str(arrays["facts"]))
            names = [name.removeprefix("sum/") for name in arrays.files if name.startswith("sum/")]
            sums = {name: Sums(arrays[f"sum/{name}"], arrays[f"count/{name}"]) for name in names}
            return cls(sums, facts["leader"], arrays["nll"], facts["seconds"])

    def add(self, other: Shard) -> None:
        """Merge the next shard of the same run into this one."""
        if other.leader != self.leader:
            missing = sorted(set(self.leader) ^ set(other.leader))
            raise QuantmillError(f"shards saw different weights ({', '.join(missing[:3])})")
        for name, entry in other.sums.items():
            self.sums[name].add(entry)
        self.nll = np.concatenate([self.nll, other.nll])
        self.seconds += other.seconds


@dataclass
class Collector:
    """An observer of the engine that sums up a run of chunks.

    `sums` are by leader: the first of the weights that share an input;
    `leader` gives it for each weight. `begin()` comes before every decode, for
    inputs are distinguished by their address within one graph. The threads of `pool`
    help where ggml's own do not wait for work: beside a GPU.
    """

    head: bool = True
    sums: dict[str, Sums] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)
    last: str | None = None
    _inputs: dict[tuple[int, ...], str] = field(default_factory=dict)
    pool: Executor | None = None
    threads: int = 1

    def begin(self, *, head: bool) -> None:
        """A new graph is about to be computed, with or without the output head.

        The first graph tells which multiplication is the last one observed.
        """
        if self._inputs and self.last is None:
            self.last = list(self._inputs.values())[-1]
        self._inputs.clear()
        self.head = head

    def __call__(self, node: MatMul) -> bool:
        """The engine's observer: whether to show this node's data, then whether to go on."""
        name = node.weight
        if node.ask:
            return self._is_wanted(node) and self._leads(node, name)
        self._add(node, name)
        return self.head or self.last is None or name != self.last

    def _is_wanted(self, node: MatMul) -> bool:
        if node.indirect:
            return True
        return node.input_is_f32 and node.input_shape[1] >= LEAST_ROWS and node.weight.startswith("blk.")

    def _leads(self, node: MatMul, name: str) -> bool:
        """Whether this weight is the first in this graph to take its input."""
        leader = self._inputs.setdefault(node.input_identity, name)
        if self.leader.setdefault(name, leader) != leader:
            raise QuantmillError(f"{name} took its input from elsewhere in another chunk's graph")
        return leader == name

    def _add(self, node: MatMul, name: str) -> None:
        values = node.input()
        if node.indirect:
            self._add_experts(node, name, values[0])
            return
        matrices, columns = node.matrices, values.shape[3]
        entry = self._entry(name, matrices, columns, 1)
        for i3 in range(values.shape[0]):
            for i2 in range(values.shape[1]):
                entry.in_sum2[(i3 * values.shape[1] + i2) % matrices] += self._squares(values[i3, i2])[0]
        entry.counts += int(np.prod(values.shape[:3])) // matrices

    def _add_experts(self, node: MatMul, name: str, values: NDArray[np.float32]) -> None:
        """`values` [tokens, experts used or 1, columns]; each row counts for the expert it is sent to."""
        experts = node.experts()
        entry = self._entry(name, node.matrices, values.shape[2], node.matrices)
        rows = np.broadcast_to(values, (*experts.shape, values.shape[2]))
        entry.in_sum2 += self._squares(rows, node.matrices, experts.reshape(-1))
        entry.counts += np.bincount(experts.reshape(-1), minlength=node.matrices)

    def _entry(self, name: str, matrices: int, columns: int, counts: int) -> Sums:
        if name not in self.sums:
            self.sums[name] = Sums(np.zeros((matrices, columns)), np.zeros(counts, np.int64))
        return self.sums[name]

    def _squares(
        self, rows: NDArray[np.float32], matrices: int = 1, matrix: NDArray[np.int32] | None = None
    ) -> NDArray[np.float32]:
        """The sums [matrices, columns] of the squares of rows [..., columns]."""
        return squares(rows, rows.shape[-1], matrices, matrix, self.pool, self.threads)
