"""The rows of the main table, from made-up results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantmill.card import columns
from quantmill.judge.results import read

Tree = tuple[Path, dict[str, Any]]


def test_rows_stand_largest_first_after_the_source(tree: Tree) -> None:
    rows = columns.rows(read(*tree))
    assert [row.name for row in rows] == ["source", "Q8_0", "Q6_K", "Q4_K_L", "Q5_K_M", "Q4_K_M", "IQ2_XXS"]
    assert [row.bytes for row in rows] == sorted((row.bytes for row in rows), reverse=True)
    assert [row.name for row in rows if row.best] == ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]
    assert [row.name for row in rows if row.fastest] == ["IQ2_XXS"]
    assert rows[0].type == "f16"
