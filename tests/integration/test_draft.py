"""Draft heads from a config to a card: one that is right, one that is wrong, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import heads
from checkout import ROOT, Checkout

CHUNKS = {"corpus": "held-out", "chunks": 4, "context": 64}


def configure(checkout: Checkout, *models: str, **bench: Any) -> None:
    """One recipe of each of the models, and of the bench what is given alone."""
    checkout.configure(
        lambda config: config.update(
            models={name: {"source": {"path": f"{name}.gguf"}} for name in models},
            imatrix=None,
            sensitivity=None,
            recipes=["Q4_K_M"],
            bench=bench,
        )
    )


def card_of(checkout: Checkout, model: str) -> str:
    return (checkout.folder / "results" / model / "card" / "README.md").read_text("utf-8")


def lengths(checkout: Checkout, model: str, row: str) -> list[dict[str, Any]]:
    report = json.loads((checkout.folder / f"results/{model}/bench/{row}/draft.json").read_text("utf-8"))
    made: list[dict[str, Any]] = report["lengths"]
    return made


def test_from_the_config_to_the_card(tmp_path: Path) -> None:
    checkout = Checkout.build(tmp_path / "checkout")
    heads.write_right(checkout.folder / "right.gguf")
    heads.write_wrong(checkout.folder / "wrong.gguf")
    server = checkout.folder / "llama-server"
    fake = (ROOT / "tests" / "fake_server.py").read_text("utf-8")
    server.write_text(f"#!{sys.executable}\n{fake}", encoding="utf-8")
    server.chmod(0o755)
    (checkout.folder / "notes").mkdir()
    (checkout.folder / "notes" / "mode").touch()
    workloads = [{"name": "a", "prompt": 8, "generate": 4}]
    served = {"server": "llama-server", "workloads": workloads, "repetitions": 2, "draft": [1, 2]}
    configure(checkout, "right", "wrong", draft=CHUNKS, served=served)
    checkout.run()

    assert all(one["accepted"] == one["drafted"] > 0 for one in lengths(checkout, "right", "source"))
    # coarser weights: nearly all
    assert all(one["accepted"] > 0.9 * one["drafted"] > 0 for one in lengths(checkout, "right", "Q4_K_M"))
    card = card_of(checkout, "right")
    assert "| *source* | q8_0 | 100.0 % [2.00] | 100.0 % [3.00] |" in card
    assert "| `Q4_K_M` | q4_K | " in card
    assert "| File | No drafts | Drafts of 1 | Drafts of 2 | Best |" in card
    assert "the draft head is broken" not in card

    advice = card_of(checkout, "wrong").split("## Which file should I choose?")[1].split("\n## ")[0]
    assert "> **No drafts:** the draft head is broken in the source and Q4_K_M: the model accepts" in advice

    # another length is another measurement of the server, and none of the head
    assert checkout.due() == set()
    configure(checkout, "right", "wrong", draft=CHUNKS, served=served | {"draft": [1]})
    rows = {f"measure_served {row}" for row in ("source", "Q4_K_M")}
    assert checkout.due() == rows | {"write_card"}
    configure(checkout, "right", "wrong", draft=CHUNKS | {"chunks": 5}, served=served)
    drafted = {f"measure_draft {row}" for row in ("source", "Q4_K_M")}
    assert checkout.due() == drafted | {"build_corpus held-out", "write_card"}


def test_a_model_without_a_head_is_refused_before_anything_runs(tmp_path: Path) -> None:
    checkout = Checkout.build(tmp_path / "checkout")
    configure(checkout, "tiny-llama", draft=CHUNKS)
    refused = checkout.snakemake()
    assert refused.returncode != 0
    assert (
        "error: config.yaml: bench.draft: tiny-llama: has no layer of multi-token prediction; "
        "leave out `bench.draft` for it" in refused.stderr
    )
    assert not (checkout.folder / "results" / "tiny-llama").exists()
