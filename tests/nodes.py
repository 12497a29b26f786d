"""Multiplications as the engine shows them to its observers, made up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Node:
    """A multiplication as the engine shows it; `rows` [tokens, columns], for experts [tokens, 1, columns]."""

    weight: str
    rows: np.ndarray
    ask: bool = False
    chosen: np.ndarray | None = None
    matrices: int = 1
    input_is_f32: bool = True
    input_name: str = "norm"

    @property
    def indirect(self) -> bool:
        return self.chosen is not None

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.rows.shape[-1], len(self.rows), 1, 1)

    @property
    def input_identity(self) -> tuple[int, ...]:
        return id(self.rows), 0, self.matrices

    def input(self) -> np.ndarray:
        return self.rows[None] if self.indirect else self.rows[None, None]

    def experts(self) -> np.ndarray:
        assert self.chosen is not None
        return self.chosen


def shown(observer: Any, **node: Any) -> bool:
    return bool(observer(Node(**node)))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
