"""A floor of the speed, on a tiny mixture of experts: measured, kept by the plan, and on the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT, Checkout
from quantmill.budget import pace
from quantmill.formats.ggufio import read_header
from quantmill.formats.plan import read_plan

POOLS = {"gpu": "6 MiB", "cpu": "5 MiB", "context": 128, "reserve": "64 KiB"}


def floored(config: dict[str, Any], tokens: float) -> None:
    config["models"]["tiny"]["source"] = {"path": "moe.gguf"}
    config["recipes"] = [
        {"name": "slow", "template": "budget", "bpw": 5.5, "at_least": {"tg": tokens}},
        {"name": "pools", "template": "budget", "memory": POOLS, "at_least": {"tg": tokens}},
    ]
    config["sensitivity"] |= {"types": ["iq3_s", "q4_K", "q8_0"], "minutes": 0.05}
    config["bench"] = {"kld": config["bench"]["kld"], "speed": {"prompt": 8, "generate": 8}}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout.build(tmp_path_factory.mktemp("floor") / "checkout")
    shutil.copy(ROOT / "tests" / "data" / "tiny-moe.gguf", checkout.folder / "moe.gguf")
    return checkout


def report(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_what_cannot_be_had_is_refused_before_the_sensitivity_is_measured(checkout: Checkout) -> None:
    checkout.configure(lambda config: floored(config, 1e9))
    done = checkout.snakemake("plans")
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "at_least.tg: 1e+09 tokens a second cannot be had within its budget: " in said
    assert checkout.result("speeds.json").exists() and not checkout.result("sensitivity.tsv").exists()


def test_a_plan_keeps_the_floor_by_the_measured_times(checkout: Checkout) -> None:
    checkout.configure(lambda config: floored(config, 0.001))
    checkout.run("cards")
    clock = pace.Clock.read(checkout.result("speeds.json"), read_header(checkout.folder / "moe.gguf"))
    for name in ("slow", "pools"):
        made = report(checkout.result(f"recipes/{name}.json"))["pace"]
        weights = [
            pace.Weight(row.name, row.shape, row.type)
            for row in read_plan(checkout.result(f"plans/{name}.tsv"))
            if (row.type in ("iq3_s", "q4_K", "q8_0"))
        ]
        token = sum(clock.time(weight, clock.main) for weight in weights) / pace.PER_SECOND + made["rest"]
        assert made["predicted"] == pytest.approx(1 / token) and made["predicted"] >= 0.001
        assert made["predicted"] <= made["fastest"] * (1 + 1e-9)
    card = checkout.result("card/README.md").read_text("utf-8")
    assert card.count("At least 0.001 tokens a second were asked for, on ") == 2
    assert "| measured (tg8), ± standard deviation | " in card
    assert "`llama-server -m tiny-slow.gguf`" in card
    # A floor that the measured times allow, halfway to the fastest: the types are faster.
    slow = report(checkout.result("recipes/slow.json"))["pace"]
    between = (slow["predicted"] + slow["fastest"]) / 2
    checkout.configure(lambda config: floored(config, between))
    due = checkout.due("results/tiny/plans/slow.tsv")
    assert due == {"check_budget slow", "allocate_recipe slow", "plan_allocated slow"}
    checkout.run("results/tiny/plans/slow.tsv")
    assert report(checkout.result("recipes/slow.json"))["pace"]["predicted"] >= between
