"""Validity warnings: where the source measures badly, the card ranks nothing by it and tells why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantmill.card import write
from quantmill.files import read_json, write_json
from quantmill.formats.measurements import Tasks
from quantmill.judge import validity
from quantmill.judge.results import read
from reports import complete, sha

Tree = tuple[Path, dict[str, Any]]


def edit(path: Path, **fields: Any) -> None:
    write_json(path, read_json(path) | fields)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (9.95, ""),
        (1000.0, ""),
        (54321.0, "54,321: either this text is foreign"),
        (1.02, "1.020: it almost knows"),
    ],
)
def test_a_sources_perplexity_out_of_range(value: float | None, expected: str) -> None:
    message = validity.of_perplexity(value)
    assert expected in message and bool(expected) == bool(message)


@pytest.mark.parametrize(("floor", "wrong"), [(0.0, False), (1e-6, False), (1e-3, True)])
def test_a_floor_is_measured_by_the_closest_file(floor: float, wrong: bool) -> None:
    files = [{"kld": {"mean": mean}} for mean in (0.005, 0.04)]
    assert bool(validity.of_divergence({"kld": {"mean": floor}}, files)) == wrong


@pytest.mark.parametrize(("elsewhere", "wrong"), [(True, True), (False, False)])
def test_where_devices_differ_the_noise_between_them_is_the_floor(elsewhere: bool, wrong: bool) -> None:
    here, there = {"devices": ["half"]}, {"devices": ["all"]}
    source = {"kld": {"mean": 0.0}, "cpu": {"mean": 1e-3}, **here}
    files = [{"kld": {"mean": 0.005}, **(there if elsewhere else here)}]
    assert bool(validity.of_divergence(source, files)) == wrong


@pytest.mark.parametrize(
    ("value", "chance", "wrong"),
    [(0.27, 0.25, True), (0.35, 0.25, False), (0.35, None, False), (0.0, None, True)],
)
def test_a_task_at_chance(value: float, chance: float | None, wrong: bool) -> None:
    assert bool(validity.of_score("arc", value, 0.02, chance)) == wrong


def test_by_a_floor_that_is_off_nothing_is_ranked_and_perplexity_takes_its_place(kld_tree: Tree) -> None:
    folder, config = kld_tree
    path = folder / "bench" / "source" / "kld.json"
    edit(path, kld=read_json(path)["kld"] | {"mean": 0.01})
    results = read(folder, config)
    assert results.measure == "perplexity"
    assert all(quant.divergence is None for quant in results.quants)
    card = write.render(results, config)
    assert "> **Not ranked:** the source diverges from itself by 1.0e-02, where 0 is expected" in card
    assert "**Take `Q6_K` (11.6 MiB):** the smallest file not significantly worse" in card
    alone = config | {"perplexity": False}
    assert "**No advice can be given:** the source diverges" in write.render(read(folder, alone), alone)
    assert (
        "★" not in write.render(read(folder, alone), alone).split("sha256 of each")[0].split("| sha256 |")[1]
    )


def test_a_task_at_chance_gives_no_verdict(kld_tree: Tree) -> None:
    folder, config = kld_tree
    for name in ("source", *config["recipes"]):
        tasks = [
            {"name": "hard", "metric": "acc", "value": 0.26, "stderr": 0.03, "samples": 200, "chance": 0.25},
            {
                "name": "easy",
                "metric": "acc",
                "value": 0.9 if name != "IQ2_XXS" else 0.3,
                "stderr": 0.02,
                "samples": 200,
                "chance": 0.25,
            },
        ]
        report = complete(Tasks, {"tasks": tasks, "model_sha256": sha(name)})
        write_json(folder / "bench" / name / "tasks.json", report)
    config |= {"tasks": True}
    card = write.render(read(folder, config), config)
    hard, easy = card.split("### hard")[1].split("### easy")
    assert "the source itself is at chance (26.0 ± 3.0 %, guessing 25.0 %)" in hard
    assert "| `Q8_0` | 26.0 ± 3.0 % | no verdict |" in hard
    assert "| `Q8_0` | 90.0 ± 2.0 % | not distinguishable |" in easy
    assert "| `IQ2_XXS` | 30.0 ± 2.0 % | worse |" in easy
    front = card.split("---")[1]
    assert "type: easy" in front and "type: hard" not in front


def test_each_metric_of_a_task_is_judged_by_itself(kld_tree: Tree) -> None:
    folder, config = kld_tree
    for name in ("source", *config["recipes"]):
        tasks = [
            {"name": "two", "metric": metric, "value": value, "stderr": 0.02, "samples": 200, "chance": None}
            for metric, value in (("acc", 0.9 if name != "IQ2_XXS" else 0.3), ("acc_norm", 0.6))
        ]
        report = complete(Tasks, {"tasks": tasks, "model_sha256": sha(name)})
        write_json(folder / "bench" / name / "tasks.json", report)
    config |= {"tasks": True}
    card = write.render(read(folder, config), config)
    acc, norm = card.split("### two (acc)")[1].split("### two (acc_norm)")
    assert acc.count("`IQ2_XXS`") == 1 and "| `IQ2_XXS` | 30.0 ± 2.0 % | worse |" in acc
    assert "| `IQ2_XXS` | 60.0 ± 2.0 % | not distinguishable |" in norm
    front = card.split("---")[1]
    assert "name: two\n      type: two\n" in front and front.count("type: two\n") == 1
    assert "type: acc\n" in front and "type: acc_norm\n" in front
