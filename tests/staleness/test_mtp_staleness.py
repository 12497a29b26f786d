"""As in test_staleness, with what a recipe says of the draft head."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT, Checkout

Change = Callable[[Checkout], None]

CARD = {"write_lock", "write_card"}
PLAN = {"plan_types mix", "tabulate_memory"}
FILE = {"quantize mix", "check_file mix"}
MEASURED = {"measure_perplexity mix"}
ALL = PLAN | FILE | MEASURED | CARD


def settled(config: dict[str, Any]) -> None:
    """A model with a draft head, and a recipe that gives it a type."""
    config["models"]["tiny"]["source"]["path"] = "mtp.gguf"
    config["recipes"][1] = {"name": "mix", "base": "Q4_K_M", "mtp": {"type": "q8_0"}}
    config["bench"] = {"perplexity": {"corpus": "held-out", "chunks": 2, "context": 128}}
    del config["sensitivity"], config["imatrix"]


def head(value: object) -> Change:
    """What the recipe says of the head."""

    def change(config: dict[str, Any]) -> None:
        settled(config)
        config["recipes"][1]["mtp"] = value

    return lambda checkout: checkout.configure(change)


CASES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (head({"type": "q8_0"}), set()),
    "another type": (head({"type": "q6_K"}), ALL),
    "by role": (head({"attention": "q6_K", "type": "q8_0"}), ALL),
    "nothing said of the head": (head(None), ALL),
    "without the head": (head("none"), ALL),
    "the head alone, which is not measured": (head("only"), ALL - MEASURED),
}
# Whose real run is made too.
RUN = ("without the head", "the head alone, which is not measured")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with everything built."""
    checkout = Checkout.build(tmp_path_factory.mktemp("built") / "checkout")
    shutil.copy(ROOT / "tests" / "data" / "tiny-mtp-Q8_0.gguf", checkout.folder / "mtp.gguf")
    checkout.configure(settled)
    checkout.run()
    return checkout


@pytest.mark.parametrize("case", CASES)
def test_exactly_these_jobs_are_due(built: Checkout, tmp_path: Path, case: str) -> None:
    checkout = built.copy(tmp_path / "checkout")
    change, expected = CASES[case]
    change(checkout)
    assert checkout.due() == expected
    if case in RUN:
        checkout.run()
        assert checkout.due() == set()
