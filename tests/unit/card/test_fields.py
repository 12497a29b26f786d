"""Every field of the config's `card` reaches the card: a field without a marker here fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantmill.card import write
from quantmill.config.card import Card
from quantmill.files import write_json
from quantmill.formats.source import Memory
from quantmill.judge.results import read
from quantmill.judge.same_size import Entry
from reports import complete

Tree = tuple[Path, dict[str, Any]]

SPEC_NAMES = {"same_size": "iso_disk"}
"""Fields that the card's spec has under an older name."""

MARKERS: dict[str, tuple[Any, str]] = {
    "license": ("marked-license", "license: marked-license"),
    "base_model": (
        "example/marked-base",
        "[example/marked-base](https://huggingface.co/example/marked-base)",
    ),
    "title": ("Marked title", "# Marked title"),
    "language": (["sv"], "language:\n- sv"),
    "tags": (["marked-tag"], "- marked-tag"),
    "pipeline_tag": ("marked-pipeline", "pipeline_tag: marked-pipeline"),
    "library_name": ("marked-library", "library_name: marked-library"),
    "datasets": (["example/marked-dataset"], "datasets:\n- example/marked-dataset"),
    "license_name": ("marked-name", "license_name: marked-name"),
    "license_link": ("https://marked.example", "license_link: https://marked.example"),
    "quantized_by": ("marked-publisher", "quantized_by: marked-publisher"),
    "about": ("Marked about.", "Marked about."),
    "credits": ("Marked credits.", "Marked credits."),
    "license_notes": ("Marked notes.", "Marked notes."),
    "iso_disk": ([{"name": "Marked model", "source": "a marked table"}], "a marked table"),
}
"""By field of the spec, a value and the text of the card that only this value brings about."""


@pytest.mark.parametrize("field", [SPEC_NAMES.get(field, field) for field in Card.model_fields])
def test_each_field_of_the_config_reaches_the_card(kld_tree: Tree, field: str) -> None:
    folder, config = kld_tree
    if field == "contexts":  # they reach the card by memory.json
        row = {"context": 12_345, "cache": "f16"}
        row |= {f"{part}_bytes": 1 << 30 for part in ("file", "cache", "compute", "total")}
        tables = {name: {"rows": [row], "fits": []} for name in config["recipes"]}
        write_json(folder / "memory.json", complete(Memory, {"contexts": [12_345], "recipes": tables}))
        marker = "| 12,345 tokens |"
    else:
        value, marker = MARKERS[field]
        config["card"].pop(field, None)
        without = write.render(read(folder, config), config)
        assert marker not in without
        config["card"][field] = value
    theirs = [[Entry("Theirs", 9 << 20, None, 0.125)] for _ in config["card"].get("iso_disk", [])]
    assert marker in write.render(read(folder, config), config, competitors=theirs)
