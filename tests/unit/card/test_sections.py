"""What the sections of the card are built from: fallbacks, reasons, warnings, machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantmill.card.sections import contents, recipes, speed, summary
from quantmill.files import read_json, write_json
from quantmill.judge.results import read

Tree = tuple[Path, dict[str, Any]]


LEFT_OUT = "prose: 3 of 1200 rows of prose.parquet are left out: 3 not UTF-8, such as row 9"


def edit(path: Path, **fields: Any) -> None:
    write_json(path, read_json(path) | fields)


def test_fallbacks_are_grouped_with_their_widths(tree: Tree) -> None:
    rows = contents.fallbacks(read(*tree))
    assert [(f["name"], f["requested"], f["type"], f["tensors"], f["roles"], f["widths"]) for f in rows] == [
        ("Q4_K_L", "q4_K", "q5_0", 4, ["attn_k"], [512]),
        ("Q4_K_M", "q4_K", "q5_0", 4, ["attn_k"], [512]),
    ]


def test_reasons_count_every_tensor_once(tree: Tree) -> None:
    for quant in read(*tree).quants:
        groups = recipes.by_reason(quant)
        assert sum(group["tensors"] for group in groups) == quant.plan["tensors"]
        assert sum(group["bytes"] for group in groups) == quant.plan["tensor_bytes"]


def test_every_stages_warnings_are_shown_once(tree: Tree) -> None:
    folder, config = tree
    edit(folder / "imatrix.json", warnings=["3 experts below the floor"])
    for name in ("Q8_0", "Q6_K"):
        edit(folder / "plans" / f"{name}.json", warnings=["of two files"])
    assert summary.warnings(read(folder, config)) == [
        (LEFT_OUT, ["corpus calibration", "corpus held-out"]),
        ("3 experts below the floor", ["imatrix"]),
        ("of two files", ["Q8_0", "Q6_K"]),
    ]


def test_speeds_of_two_settings_are_told_apart(tree: Tree) -> None:
    folder, config = tree
    assert len(speed.machines(read(folder, config))) == 1
    edit(folder / "bench" / "Q8_0" / "speed.json", threads=4)
    assert [names for _, names in speed.machines(read(folder, config))][1] == ["Q8_0"]
