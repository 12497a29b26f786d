"""As in test_staleness, with a second round: files of the first correct the damages that it allocates by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from house import House

MEMORY = {"tabulate_memory"}
FIRST = {"allocate_recipe first", "plan_types first", "quantize first", "measure_divergence first"} | MEMORY
SECOND = {
    "allocate_recipe second", "plan_types second", "quantize second", "measure_divergence second"
} | MEMORY  # fmt: skip
Q8 = {"render_recipe Q8_0", "plan_types Q8_0", "quantize Q8_0", "measure_divergence Q8_0"}
CARD = {"write_card"}
Change = Callable[[House], None]


def config_with(*refit: str, size: str = "5.5") -> Change:
    """Two recipes of one budget, the second refitted by others; only the divergence is measured."""

    def change(config: dict[str, Any]) -> None:
        first = {"name": "first", "template": "budget", "bpw": float(size)}
        second = {"name": "second", "template": "budget", "bpw": 5.5, "refit": list(refit)}
        config["recipes"] = ["Q8_0", first, second]
        config["bench"] = {"kld": config["bench"]["kld"]}

    return lambda house: house.configure(change)


CASES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (config_with("Q8_0", "first"), set()),
    "one file fewer": (config_with("first"), SECOND | CARD),
    "another file": (
        config_with("Q8_0", "first", size="6.5"),
        FIRST | {"check_budget first", "measure_first_round first"} | SECOND | CARD,
    ),
    "a deleted check": (lambda house: house.result("reach/first.json").unlink(), set()),  # it was passed
    "no second round": (config_with(), SECOND | CARD),
    "a deleted measurement": (
        lambda house: house.result("bench/first/tuning.json").unlink(),
        {"measure_first_round first"} | SECOND | CARD,
    ),
    "the version of the divergence": (
        lambda h: h.edit(
            "workflow/quantmill/versions.py", '"measure.divergence": 1', '"measure.divergence": 9'
        ),
        {f"measure_first_round {name}" for name in ("Q8_0", "first")}
        | {f"measure_divergence {name}" for name in ("source", "Q8_0", "first")}
        | SECOND
        | CARD,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A checkout with everything built."""
    house = House.build(tmp_path_factory.mktemp("built") / "house")
    config_with("Q8_0", "first")(house)
    checks = {"check_budget first", "check_budget second"}
    assert house.due() > checks | FIRST | SECOND | Q8 | {
        f"measure_first_round {x}" for x in ("Q8_0", "first")
    }
    house.run()
    return house


@pytest.mark.parametrize("case", CASES)
def test_exactly_these_jobs_are_due(built: House, tmp_path: Path, case: str) -> None:
    change, expected = CASES[case]
    assert built.due_after(change, tmp_path / "house") == expected


def test_the_second_round_says_what_it_learned(built: House) -> None:
    report = json.loads(built.result("recipes/second.json").read_text("utf-8"))
    kld = {
        name: json.loads(built.result(f"bench/{name}/tuning.json").read_text("utf-8"))
        for name in ("Q8_0", "first")
    }
    assert {name: found["corpus"] for name, found in kld.items()} == {"Q8_0": "tuning", "first": "tuning"}
    told = {entry["recipe"]: entry for entry in report["refit"]["files"]}
    for name, found in kld.items():
        assert told[name]["measured"] == found["kld"]["mean"]
    first = told["first"]
    assert abs(first["now"] / first["measured"] - 1) < abs(first["first"] / first["measured"] - 1) + 1e-9
    assert not built.result("bench/second/tuning.json").exists()
    assert json.loads(built.result("recipes/first.json").read_text("utf-8"))["refit"] is None
