"""The card's section on rounding, and the column of the main table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantmill.card import write
from quantmill.files import read_json, write_json
from quantmill.judge.results import read
from quantmill.stages import VERSIONS

Tree = tuple[Path, dict[str, Any]]

GOLDEN = Path(__file__).parents[2] / "data" / "rounding.golden.md"


def section(tree: Tree) -> str:
    """The section of the card."""
    folder, config = tree
    return write.render(read(folder, config), config).split("## Rounding\n")[1].split("\n## ")[0]


def test_it_says_what_was_learned_from_and_compares_by_domain(gptq_tree: Callable[..., Tree]) -> None:
    tree = gptq_tree(Q5_K_M={"code": 0.4, "prose": 1.3}, Q4_K_M={"code": 0.4, "prose": 0.8})
    text = f"<!-- card.write {VERSIONS['card.write']} -->\n{section(tree).strip()}\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text("utf-8"), "made again by UPDATE_GOLDEN=1, as card.golden.md is"


def test_the_table_has_a_column_where_files_differ(gptq_tree: Callable[..., Tree]) -> None:
    folder, config = gptq_tree(Q4_K_M={"code": 0.4, "prose": 0.8})
    card = write.render(read(folder, config), config)
    assert "| Type | Rounding | bpw |" in card and "| q4_K | gptq |" in card and "| q5_K | nearest |" in card
    assert "as llama-quantize does, or with error feedback (gptq, gptaq)" in card
    alone = config | {"recipes": ["Q4_K_M"]}
    card = write.render(read(folder, alone), alone)
    assert "| Rounding |" not in card and "\nThe file was rounded with error feedback (`gptq`)" in card


def test_without_gptq_there_is_none(kld_tree: Tree) -> None:
    folder, config = kld_tree
    assert "ounding" not in write.render(read(folder, config), config)


def test_it_says_what_gptaq_does_more(gptq_tree: Callable[..., Tree]) -> None:
    tree = gptq_tree(Q5_K_M={"code": 0.4, "prose": 0.7}, Q4_K_M={"code": 0.4, "prose": 0.8})
    assert "gptaq" not in section(tree)
    report = tree[0] / "plans" / "Q4_K_M.json"
    write_json(report, read_json(report) | {"rounding": "gptaq"})
    text = section(tree)
    assert (
        "with error feedback (`gptq` or `gptaq`): where" in text and "With `gptaq` the last weights" in text
    )


def test_without_a_comparison_it_still_says_how_it_was_rounded(gptq_tree: Callable[..., Tree]) -> None:
    folder, config = gptq_tree(Q4_K_M={"code": 0.4, "prose": 0.8})
    text = section((folder, config | {"rounding": {"Q4_K_M": False}}))
    assert text.strip().startswith("`Q4_K_M` was rounded") and "|" not in text


def test_another_text_than_the_imatrixs_is_shown_and_warned_of(gptq_tree: Callable[..., Tree]) -> None:
    folder, config = gptq_tree(Q4_K_M={"code": 0.4, "prose": 0.8})
    assert "What calibration is made of" not in section((folder, config))
    moments = read_json(folder / "moments.json")
    write_json(
        folder / "moments.json", moments | {"corpus": "more", "warnings": ["fewer tokens than columns"]}
    )
    write_json(
        folder / "corpus" / "more.json", read_json(folder / "corpus" / "held-out.json") | {"corpus": "more"}
    )
    assert "What more is made of: code, prose" in section((folder, config))
    assert "- fewer tokens than columns (second moments)" in write.render(read(folder, config), config)
