"""The second round: damages corrected by files that were measured."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from budget_data import POOL, damages_of
from quantmill.budget.allocate import fit
from quantmill.budget.refit import File, read_file, refit
from quantmill.errors import QuantmillError
from quantmill.files import write_json
from quantmill.model.ggufio import Header
from quantmill.recipe.damage import Damage
from quantmill.recipe.table import PlanRow, write_plan

Config = Callable[..., dict[str, Any]]
TRUTH = {"ffn_up": 0.7, "ffn_down": 1.3}
FLOOR = 3e-4


def files_of(damages: list[Damage], count: int, floor: float = FLOOR, seed: int = 5) -> list[File]:
    """Files of drawn types that diverge by the true factors and the floor."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        low = draw.randrange(len(POOL))
        types = {row.name: draw.choice(POOL[low:]) for row in damages}
        kld = sum(row.kld * TRUTH.get(row.role, 1.0) for row in damages if types[row.name] == row.type)
        found.append(File(f"file{number}", types, floor + kld))
    return found


def test_many_files_tell_the_factors_and_the_floor(llama: Header) -> None:
    damages = damages_of(llama)
    found = refit(damages, files_of(damages, 60), "here")
    assert found.floor == pytest.approx(FLOOR, rel=0.05)
    assert found.factors["ffn_down"] == pytest.approx(1.3, abs=0.06)
    assert found.factors["ffn_up"] == pytest.approx(0.7, abs=0.06)
    assert found.factors.keys() == {row.role for row in damages}
    measured = [file.kld for file in found.files]
    assert found.after == pytest.approx(measured, rel=0.02)
    assert max(abs(found.before / measured - 1)) > 0.2
    for row, corrected in zip(damages, found.corrected(damages), strict=True):
        factor = found.factors[row.role]
        assert corrected.damage == row.damage * factor and corrected.se == row.se * factor


def test_one_file_tells_the_floor_and_leaves_the_factors(llama: Header) -> None:
    damages = damages_of(llama)
    (file,) = files_of(damages, 1, seed=2)
    said = sum(row.kld for row in damages if file.types[row.name] == row.type)
    found = refit(damages, [replace(file, kld=said + 0.002)], "here")
    assert found.floor == pytest.approx(0.002, rel=1e-6)
    assert list(found.factors.values()) == pytest.approx([1.0] * len(found.factors))
    below = refit(damages, [replace(file, kld=0.5 * said)], "here")  # a floor is never negative
    assert below.floor == 0 and 0.2 <= min(below.factors.values()) < 1


def test_what_a_file_keeps_of_the_source_costs_nothing(llama: Header) -> None:
    damages = damages_of(llama)
    (file,) = files_of(damages, 1)
    whole = replace(file, types=dict.fromkeys(file.types, "f16"))
    assert refit(damages, [whole], "here").before == pytest.approx([0.0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kld": 0.0}, "here.refit: file0 does not diverge from the source; refit by recipes that quantize"),
        (
            {"types": "q5_1"},
            "here.refit: no damage is known of {name} at q5_1, which file0 has; refit by other recipes",
        ),
    ],
)
def test_a_file_that_tells_nothing_is_refused(llama: Header, change: dict[str, Any], said: str) -> None:
    damages = damages_of(llama)
    (file,) = files_of(damages, 1)
    if "types" in change:
        change = {"types": dict.fromkeys(file.types, change["types"])}
    with pytest.raises(QuantmillError) as error:
        refit(damages, [replace(file, **change)], "here")
    assert said.format(name=damages[0].name) in str(error.value)


def test_the_second_round_allocates_by_the_corrected_damages(llama: Header, config: Config) -> None:
    damages = damages_of(llama)
    files = files_of(damages, 60)
    asked = config({"bpw": 4.5}, refit=[file.name for file in files])
    _, first = fit(llama, damages, asked)
    recipe, second = fit(llama, damages, asked, files)
    corrected = refit(damages, files, "here").corrected(damages)
    by_hand, told = fit(llama, corrected, asked)
    assert recipe == by_hand and second["objective"] == told["objective"]
    assert first["refit"] is None
    assert second["refit"]["factors"]["ffn_down"] == pytest.approx(1.3, abs=0.06)
    assert second["predicted_kld"] == pytest.approx(told["predicted_kld"] + second["refit"]["floor"])
    assert [entry["recipe"] for entry in second["refit"]["files"]] == [file.name for file in files]

    def truth(report: dict[str, Any]) -> float:
        types = dict(line.rsplit("=", 1) for line in report["rules"])
        kinds = {row.name: next(k for p, k in types.items() if re.search(p, row.name)) for row in damages}
        return sum(row.kld * TRUTH.get(row.role, 1.0) for row in damages if kinds[row.name] == row.type)

    assert truth(second) <= truth(first)


def test_a_file_is_read_from_its_plan_and_its_measurement(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.tsv", [PlanRow("a.weight", "a", -1, (8, 8), "f16", "q4_K", 9, "")])
    write_json(tmp_path / "k.json", {"kld": {"mean": 0.5, "error": 0.1}, "chunks": 3})
    found = read_file("first", tmp_path / "p.tsv", tmp_path / "k.json")
    assert found == File("first", {"a.weight": "q4_K"}, 0.5, 3)


def test_few_chunks_are_warned_of(llama: Header, config: Config) -> None:
    damages = damages_of(llama)
    few = [replace(file, chunks=3) for file in files_of(damages, 2)]
    _, report = fit(llama, damages, config({"bpw": 4.5}), few)
    said = "a second round by 3 chunks does harm more often than good: take 8 or more"
    assert said in report["warnings"]
    assert said not in fit(llama, damages, config({"bpw": 4.5}), files_of(damages, 2))[1]["warnings"]
