"""A draft head on the card: in a file of its own, and in a file of an engine that refuses it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from quantmill.card import write
from quantmill.files import read_json, read_table, write_json, write_table
from quantmill.judge import same_size
from quantmill.judge.results import read

Tree = tuple[Path, dict[str, Any]]
ALONE = "Q4_K_M"


def card_of(tree: Tree) -> str:
    return write.render(read(*tree), tree[1])


def with_draft(tree: Tree) -> Tree:
    """The results where one file is a head alone, of which nothing is measured."""
    folder, config = tree
    report = folder / "plans" / f"{ALONE}.json"
    write_json(report, read_json(report) | {"mtp": "only"})
    shutil.rmtree(folder / "bench" / ALONE)
    return folder, config


def test_a_head_alone_is_in_no_comparison_and_used_beside_a_model(kld_tree: Tree) -> None:
    before = len(read(*kld_tree).quants)
    results = read(*with_draft(kld_tree))
    assert [quant.name for quant in results.drafts] == [ALONE]
    assert len(results.quants) == before - 1 and ALONE not in {quant.name for quant in results.quants}
    card = card_of(kld_tree)
    table, usage = card.split("## How to use")[0], card.split("## How to use")[1].split("\n## ")[0]
    assert f"[`{ALONE}`]" not in table and f"  tiny-{ALONE}.gguf" in table  # its sha256
    assert f"With the draft head in a file of its own (`tiny-{ALONE}.gguf`), which proposes tokens" in usage
    assert f"--spec-type draft-mtp --spec-draft-model tiny-{ALONE}.gguf -c " in usage
    assert f"| `tiny-{ALONE}.gguf` | {ALONE}, " in card.split("## Files in the repository")[1]
    assert f"<details><summary>{ALONE}: base" in card


def test_it_is_downloaded_from_the_repository(kld_tree: Tree) -> None:
    folder, config = with_draft(kld_tree)
    card = card_of((folder, config | {"repo": "me/tiny-GGUF"}))
    assert f"hf download me/tiny-GGUF tiny-{ALONE}.gguf --local-dir ." in card


def test_a_head_alone_that_fails_its_check_is_named(kld_tree: Tree) -> None:
    folder, config = with_draft(kld_tree)
    facts = read_json(folder / "gguf" / f"tiny-{ALONE}.json")
    path = folder / "checks" / f"{ALONE}.json"
    write_json(path, read_json(path) | {"failures": ["NaN"], "sha256": facts["sha256"]})
    assert [quant.name for quant in read(folder, config | {"checks": True}).unsound] == [ALONE]


def test_there_is_no_modelfile_of_it(kld_tree: Tree) -> None:
    folder, config = with_draft(kld_tree)
    made = write.modelfiles(write.view(read(folder, config), config))
    assert made and f"Modelfile.{ALONE}" not in made


def test_a_comparison_with_other_models_leaves_it_out(kld_tree: Tree) -> None:
    folder, _ = with_draft(kld_tree)
    named = folder.rename(folder.parent / "tiny")
    names = {entry.name for entry in same_size.read_competitor(named)}
    assert "Q8_0" in names and ALONE not in names


def test_a_file_that_ik_refuses_is_named(tree: Tree) -> None:
    folder, config = tree
    shutil.copytree(folder / "bench" / "source", folder / "bench" / "source-ik")
    config["engines"] = {name: "ik" if name == ALONE else "mainline" for name in config["recipes"]}
    report = folder / "plans" / f"{ALONE}.json"
    write_json(report, read_json(report) | {"engine": "ik"})
    said = (
        "`Q4_K_M` holds a draft head (multi-token prediction): the ik_llama.cpp of the measurements refuses"
    )
    assert said not in card_of(tree)
    plan = folder / "plans" / f"{ALONE}.tsv"
    rows = read_table(plan)
    write_table(plan, list(rows[0]), [*(list(row.values()) for row in rows[:-1]), nextn(rows[-1])])
    assert said in card_of(tree)


def nextn(row: dict[str, str]) -> list[str]:
    """The row as of a draft head's tensor."""
    return list((row | {"role": "nextn"}).values())


def test_files_of_ik_are_served_by_its_own_server(tree: Tree) -> None:
    folder, config = tree
    shutil.copytree(folder / "bench" / "source", folder / "bench" / "source-ik")
    config["engines"] = {name: "ik" if name == ALONE else "mainline" for name in config["recipes"]}
    config["served"] = config["served_in_ik"] = True
    rate = {"mean": 10.0, "sd": 0.5, "samples": [10.0]}
    work = {"name": "a", "prompt_tokens": 8, "generated_tokens": 8, "prefill": rate, "decode": rate}
    machine = read_json(folder / "bench" / "source" / "speed.json")["machine"]
    for row in ("source", "source-ik", *config["recipes"]):
        of_ik = row in ("source-ik", ALONE)
        sha256 = read_json(folder / "bench" / row / "perplexity.json")["model_sha256"]
        report = {
            "server": "ik's llama-server 9" if of_ik else "llama-server 7",
            "workloads": [work],
            "gpu": None,
            "threads": 1,
            "machine": machine,
            "model_sha256": sha256,
        }
        write_json(folder / "bench" / row / "served.json", report)
    section = card_of(tree).split("## Speed over HTTP")[1].split("\n## ")[0]
    assert section.strip().startswith(
        "llama-server 7, one request at a time; tokens per second, mean ± standard deviation. "
        "`Q4_K_M` by ik's llama-server 9."
    )
    assert "| `Q4_K_M` | a | 8 | 8 |" in section
    without = dict(config)
    del without["served_in_ik"]
    assert "| `Q4_K_M` |" not in card_of((folder, without)).split("## Speed over HTTP")[1].split("\n## ")[0]
