"""The draft head on the card: acceptance, speed with drafts, the command, a head that is broken in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantmill.card import write
from quantmill.files import read_json, write_json
from quantmill.formats.drafts import Drafts
from quantmill.formats.measurements import Served
from quantmill.judge.results import read
from reports import complete, sha

Tree = tuple[Path, dict[str, Any]]
CORPUS = "held-out"


def drafts(name: str, corpus: str, share: float, kind: str | None) -> dict[str, Any]:
    """draft.json of 4 prompts, each with 100 drafts a length, of which so many are accepted."""
    lengths = [
        {
            "length": length,
            "drafted": 400 * length,
            "accepted": int(400 * share),
            "steps": 400,
            "drafted_by_chunk": [100 * length] * 4,
            "accepted_by_chunk": [int(100 * share)] * 4,
        }
        for length in (1, 2, 3, 4)
    ]
    report = {"model_sha256": sha(name), "corpus": corpus, "type": kind, "lengths": lengths if kind else []}
    return complete(Drafts, report)


def served(name: str, faster: float) -> dict[str, Any]:
    """served.json in which drafts of 2 are so many times as fast as none."""

    def workloads(rate: float) -> list[dict[str, Any]]:
        rates = {"mean": rate, "sd": 1.0, "samples": [rate - 1, rate, rate + 1]}
        return [{"name": "answer", "generated_tokens": 300, "prefill": rates, "decode": rates}]

    drafting = [
        {"length": length, "drafted": 10, "accepted": 5, "workloads": workloads(rate)}
        for length, rate in ((1, 100.0), (2, 100.0 * faster))
    ]
    report = {"server": "llama-server 7", "model_sha256": sha(name), "workloads": workloads(100.0)}
    return complete(Served, report | {"drafts": drafting})


@pytest.fixture
def measured(kld_tree: Tree) -> Tree:
    """Results in which the head of one file is broken, another has none, and one gains by drafts."""
    folder, config = kld_tree
    corpus = read_json(folder / "bench" / "source" / "kld.json")["corpus"]
    for path in (folder / "bench").iterdir():
        share, kind = {"IQ2_XXS": (0.0, "iq2_xxs"), "Q8_0": (0.6, None)}.get(path.name, (0.6, "q8_0"))
        write_json(path / "draft.json", drafts(path.name, corpus, share, kind))
        write_json(path / "served.json", served(path.name, 1.7 if path.name == "source" else 0.9))
    gaining = next(name for name in config["recipes"] if name not in ("IQ2_XXS", "Q8_0"))
    write_json(folder / "bench" / gaining / "served.json", served(gaining, 1.5))
    return folder, config | {"draft": True, "served": True, "gaining": gaining}


def card_of(tree: Tree) -> str:
    folder, config = tree
    return write.render(read(folder, config), config)


def test_the_section(measured: Tree) -> None:
    gaining = measured[1].pop("gaining")
    card = card_of(measured)
    section = card.split("## Draft head")[1].split("\n## ")[0]
    lines = section.splitlines()
    assert "| File | Type of the head | Drafts of 1 | Drafts of 2 | Drafts of 3 | Drafts of 4 |" in lines
    rows = [line for line in lines if line.startswith("| `IQ2_XXS` | iq2_xxs |")]
    assert rows[0].startswith("| `IQ2_XXS` | iq2_xxs | 0.0 % (0 to 1) [1.00] |")
    assert not any(line.startswith("| `Q8_0` | q8_0") for line in lines)
    assert f"| `{gaining}` | q8_0 | 60.0 % [1.60] | 30.0 % [1.60] | 20.0 % [1.60] | 15.0 % [1.60] |" in lines
    assert f"| `{gaining}` | 100.0 ± 1.0 | 100.0 ± 1.0 | 150.0 ± 1.0 | 2: 1.50\u00d7 |" in lines
    assert "| `IQ2_XXS` | 100.0 ± 1.0 | 100.0 ± 1.0 | 90.0 ± 1.0 | no drafts |" in lines
    assert "behind llama-server 7, over all workloads" in section
    (command,) = [line for line in lines if line.startswith("llama-server -m ")]
    assert f"{gaining}.gguf" in command
    assert command.endswith("--port 8080 --spec-type draft-mtp --spec-draft-n-max 2")
    for table in section.split("\n\n"):
        if table.startswith("| File"):
            counts = {line.count("|") for line in table.splitlines()}
            assert len(counts) == 1, table


def test_a_broken_head_is_named_wherever_files_are_chosen(measured: Tree) -> None:
    measured[1].pop("gaining")
    card = card_of(measured)
    words = (
        "the draft head is broken in IQ2_XXS: the model accepts 0.0 % of its single drafts (95 % interval to "
        "0.8 %), so drafts only cost time"
    )
    advice = card.split("## Which file should I choose?")[1].split("\n## ")[0]
    assert f"> **No drafts:** {words}." in advice
    assert f"**T{words[1:]}.**" in card.split("## Draft head")[1]
    assert f"- {words} (draft head)" in card.split("**Warnings**")[1]


def test_several_broken_heads_are_one_sentence(measured: Tree) -> None:
    folder, config = measured
    config.pop("gaining")
    report = read_json(folder / "bench" / "IQ2_XXS" / "draft.json")
    write_json(folder / "bench" / "source" / "draft.json", report | {"model_sha256": sha("source")})
    assert (
        "> **No drafts:** the draft head is broken in the source and IQ2_XXS: the model accepts at most "
        "0.0 % of its single drafts"
    ) in card_of(measured)


def test_without_the_measure_there_is_no_section(kld_tree: Tree) -> None:
    assert "## Draft head" not in card_of(kld_tree)
