"""Which file for which memory: the best that fits, the cache that makes it fit, rows that say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantmill.card import write
from quantmill.card.sections.memory import longest
from quantmill.files import write_json
from quantmill.formats.source import Memory
from quantmill.judge import memory
from quantmill.judge.results import read
from reports import complete

Tree = tuple[Path, dict[str, Any]]
GIB = 1 << 30


def table(file: int, per_token: float = 0.25) -> dict[str, Any]:
    """Made up: a cache of f16 takes so many MiB a token, q8_0 half of it."""
    rows = [
        {
            "context": context,
            "cache": cache,
            "file_bytes": file,
            "compute_bytes": 0,
            "cache_bytes": round(context * per_token * share * (1 << 20)),
            "total_bytes": file + round(context * per_token * share * (1 << 20)),
        }
        for context in (4096, 32768)
        for cache, share in (("q8_0", 0.5), ("f16", 1.0))
    ]
    fits = [
        {"total_bytes": 16 * GIB, "cache": "f16", "context": 8192},
        {"total_bytes": 8 * GIB, "cache": "f16", "context": 0},
    ]
    return {"rows": rows, "fits": fits}


def with_memory(tree: Tree) -> Tree:
    folder, config = tree
    sizes = {"Q8_0": 28, "Q6_K": 21, "Q4_K_L": 18, "Q5_K_M": 19, "Q4_K_M": 13, "IQ2_XXS": 5}
    tables = {name: table(gib * GIB) for name, gib in sizes.items()}
    write_json(folder / "memory.json", complete(Memory, {"contexts": [4096, 32768], "recipes": tables}))
    return folder, config


def test_the_closest_file_that_fits_is_named_for_each_device_and_context(kld_tree: Tree) -> None:
    results = read(*with_memory(kld_tree))
    assert memory.contexts(results) == [4096, 32768]
    rows = [
        (d.smallest, d.largest, [f and (f.quant.name, f.cache, f.total / GIB) for f in d.fitting])
        for d in memory.by_device(results)
    ]
    # nothing but IQ2_XXS fits 8 and 12 GB, and that has collapsed; 1 GiB stays free
    assert rows == [
        (8, 12, [None, None]),
        (16, 16, [("Q4_K_M", "f16", 14.0), None]),
        (24, 24, [("Q6_K", "f16", 22.0), ("Q4_K_M", "f16", 21.0)]),
        (32, 32, [("Q8_0", "f16", 29.0), ("Q6_K", "f16", 29.0)]),
        (48, 48, [("Q8_0", "f16", 29.0), ("Q8_0", "f16", 36.0)]),
    ]


def test_a_smaller_cache_is_taken_where_nothing_fits_otherwise(kld_tree: Tree) -> None:
    folder, config = with_memory(kld_tree)
    tables = {name: table(18 * GIB) for name in config["recipes"]}
    write_json(folder / "memory.json", complete(Memory, {"contexts": [4096, 32768], "recipes": tables}))
    rows = memory.by_device(read(folder, config))
    fitting = next(row for row in rows if row.smallest == 24).fitting[1]
    assert fitting is not None
    assert (fitting.quant.name, fitting.cache) == ("Q8_0", "q8_0")
    card = write.render(read(folder, config), config)
    assert "| `Q8_0`, 19.00 GiB | `Q8_0` with a q8_0 cache, 22.00 GiB |" in card


def test_what_is_no_smaller_than_the_source_is_not_named(kld_tree: Tree) -> None:
    results = read(*with_memory(kld_tree))
    sizes = sorted((quant.bytes for quant in results.quants), reverse=True)
    results.facts["bytes"] = sizes[0]
    named = {f.quant.name for row in memory.by_device(results) for f in row.fitting if f}
    assert results.quants[0].name == "Q8_0"
    assert named == {"Q6_K", "Q4_K_M"}


def test_the_bytes_of_a_token_by_cache(kld_tree: Tree) -> None:
    results = read(*with_memory(kld_tree))
    assert memory.per_token(results.quants[0]) == {"f16": 0.25 * (1 << 20), "q8_0": 0.125 * (1 << 20)}


def test_the_card_answers_16_gb_and_32k_in_one_place(kld_tree: Tree) -> None:
    folder, config = with_memory(kld_tree)
    card = write.render(read(folder, config), config)
    before = card.split("| File | In short |")[0]
    assert "| Memory | 4,096 tokens | 32,768 tokens |" in before
    assert "| 16 GB | `Q4_K_M`, 14.00 GiB | none fits |" in before
    section = card.split("## Memory\n")[1]
    assert "A token of context takes 128.0 KiB (q8_0), 256.0 KiB (f16)." in section
    assert "| `Q8_0` | 8 GB | none | none |" in section
    assert "| `Q8_0` | 16 GB | none | 8,192 |" in section


def test_devices_of_one_answer_are_one_line() -> None:
    fits = [
        {"total_bytes": gib * GIB, "cache": cache, "context": context}
        for gib, context in ((8, 0), (12, 4096), (16, 4096), (24, 4096))
        for cache in ("f16", "q8_0")
    ]
    assert longest({"rows": [], "fits": fits}) == [
        ("8 GB", {"f16": 0, "q8_0": 0}),
        ("12 to 24 GB", {"f16": 4096, "q8_0": 4096}),
    ]


def test_without_memory_tables_the_card_says_nothing_of_devices(kld_tree: Tree) -> None:
    card = write.render(read(*kld_tree), kld_tree[1])
    assert "| Memory |" not in card and "## Memory" not in card
    assert "room for the context on top" in card
