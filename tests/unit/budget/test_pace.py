"""A floor of the speed: exact within size and time, for one memory and for two, by made-up times."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from budget_data import sensitivity_of
from quantmill.budget import knapsack, pace, pools
from quantmill.budget.allocate import size_targeted
from quantmill.budget.candidates import Choice, Group
from quantmill.budget.speed import to_measure, weights_of
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, Tensor
from quantmill.formats.speeds import SPEEDS
from quantmill.formats.types import known
from quantmill.model import memory

Config = Callable[..., dict[str, Any]]
MIB = 1 << 20
CANDIDATES = ("iq3_s", "q4_K", "q6_K", "q8_0")
SLOW = {"iq3_s": 6.0, "q6_K": 2.0}  # beside the time of reading their bytes


def table_of(header: Header, *, tokens: float | None = 40.0, devices: tuple[str, ...] = ("CPU",)) -> Any:
    """Times as if a byte took 10 ns, of some types more; the first of two devices is ten times as fast."""
    times = []
    for number, device in enumerate(devices):
        unit = 1e-8 / (10 if len(devices) > 1 and number == 0 else 1)
        for shape, kind in to_measure(header, weights_of(header), CANDIDATES):
            weights = shape.columns * shape.rows * (shape.used or shape.matrices)
            seconds = weights * known(kind).bits / 8 * unit * SLOW.get(kind, 1.0)
            once = {"median": seconds, "low": seconds, "high": seconds, "samples": 1}
            times.append(
                {"device": device, **shape._asdict(), "type": kind, "buffer": device}
                | {"generate": once, "prompt": once}
            )
    token = 1 / (tokens or 1.0)
    source = None if tokens is None else {"median": token, "low": token, "high": token, "samples": 1}
    return {
        "machine": {"cpu": "Example CPU", "cores": 2, "memory_bytes": 1 << 33},
        "threads": 2,
        "devices": [{"name": name, "description": name} for name in devices],
        "types": times,
        "source": source,
        **({} if source else {"why_not": "only its header is here"}),
    }


@pytest.fixture
def speeds(tmp_path: Path) -> Callable[..., Path]:
    def write(header: Header, **more: Any) -> Path:
        path = tmp_path / "speeds.json"
        SPEEDS.write(path, table_of(header, **more))
        return path

    return write


@pytest.mark.parametrize("seed", range(40))
def test_the_knapsack_within_a_second_limit_is_the_optimum(seed: int) -> None:
    draw = random.Random(seed)
    shape = [range(draw.randint(1, 4)) for _ in range(6)]
    sizes = [[draw.randrange(1, 40) for _ in of] for of in shape]
    times = [[draw.randrange(1, 40) * 10**8 for _ in of] for of in shape]
    costs = [[draw.random() for _ in of] for of in shape]
    capacity, most = draw.randrange(40, 160), draw.randrange(40, 160) * 10**8

    def total(rows: Any, picks: Any) -> Any:
        return sum(row[pick] for row, pick in zip(rows, picks, strict=True))

    within = [
        total(costs, picks)
        for picks in itertools.product(*shape)
        if total(sizes, picks) <= capacity and total(times, picks) <= most
    ]
    limit = knapsack.Limit(times, most)
    if sum(map(min, sizes)) > capacity:
        return
    if not within:
        with pytest.raises(
            QuantmillError, match=r"HiGHS found no allocation|no choices are within the limits"
        ):
            knapsack.solve(sizes, costs, capacity, [limit])
        return
    solution = knapsack.solve(sizes, costs, capacity, [limit])
    assert solution.cost == pytest.approx(min(within)) and solution.gap < 1e-9
    assert total(sizes, solution.picks) == solution.size <= capacity
    assert total(times, solution.picks) <= most


def test_a_slower_choice_may_be_worth_it_and_a_faster_one_too() -> None:
    assert knapsack.undominated([32, 32, 32], [1.0, 2.0, 2.0], [9, 5, 7]) == [0, 1]
    assert knapsack.undominated([32, 64], [1.0, 1.0], [9, 9]) == [0]


def test_what_a_token_takes_beside_the_weights_is_not_left_to_them() -> None:
    floor = pace.Floor(cast(pace.Clock, None), 10.0, (), 3 * 10**10, "recipe r")
    assert floor.left() == 7 * 10**10
    assert floor.rate(2 * 10**10, floor.left()) == pytest.approx(20)  # 0.02 s and the rest, 0.03 s


def a_group(draw: random.Random, name: str) -> Group:
    tensor = Tensor(name, "f16", 1, (256, 1), 0, 0, 0)
    kinds = ("q8_0", "q6_K", "q4_K")
    return Group((tensor,), tuple(Choice(k, (k,), draw.randrange(1, 30), draw.random(), ()) for k in kinds))


class MadeUp(pace.Floor):
    """A floor with made-up times: on the CPU three times those of the GPU."""

    def times(self, groups: Any, on_cpu: frozenset[int] = frozenset()) -> list[list[int]]:
        slow = [3 if self._device(group.tensors[0].name, on_cpu) == "CPU" else 1 for group in groups]
        of = {"q8_0": 5 * 10**9, "q6_K": 8 * 10**9, "q4_K": 2 * 10**9}
        return [
            [of[choice.type] * factor for choice in group.choices]
            for group, factor in zip(groups, slow, strict=True)
        ]


@pytest.mark.parametrize("seed", range(25))
def test_two_memories_with_a_floor_are_the_optimum(seed: int, moe: Header) -> None:
    draw = random.Random(seed)
    names = ["token_embd.weight", "output.weight", *(f"blk.{n}.ffn_up_exps.weight" for n in range(3))]
    groups = [a_group(draw, name) for name in names]
    gpu, cpu, tokens = draw.randrange(40, 110), draw.randrange(40, 110), draw.uniform(14, 40)
    given: Any = {"gpu": gpu, "cpu": cpu, "reserve": 0, "context": 256, "cache": "f16"}
    room = pools.Room(given, memory.Memory(0, 0, 0), pools.Fixed(), (0, 1, 2), 0, 0)
    devices = ("GPU", "CPU")
    clock = pace.Clock(moe, table_of(moe, devices=devices), {})
    floor = MadeUp(clock, tokens, (), 0, "recipe fit")
    costs, fastest = [], 0.0
    for count, picks in itertools.product(range(4), itertools.product(range(3), repeat=5)):
        chosen = [group.choices[pick] for group, pick in zip(groups, picks, strict=True)]
        on_cpu = chosen[0].bytes + sum(choice.bytes for choice in chosen[2 : 2 + count])
        if on_cpu > cpu or sum(choice.bytes for choice in chosen) - on_cpu > gpu:
            continue
        times = floor.times(groups, frozenset(range(count)))
        time = sum(row[pick] for row, pick in zip(times, picks, strict=True))
        fastest = max(fastest, pace.PER_SECOND / time)
        if time <= int(pace.PER_SECOND / tokens):
            costs.append(sum(choice.cost for choice in chosen))
    if not fastest:
        return
    if not costs:
        with pytest.raises(QuantmillError, match=r"^recipe fit\.at_least\.tg: .* cannot be had"):
            pools.check(groups, room, "recipe fit", floor)
        return
    assert pools.check(groups, room, "recipe fit", floor) == pytest.approx(fastest)
    count, solution = pools.solve(groups, room, "recipe fit", floor)
    assert solution.cost == pytest.approx(min(costs)) and solution.gap < 1e-9
    times = floor.times(groups, frozenset(range(count)))
    assert sum(row[pick] for row, pick in zip(times, solution.picks, strict=True)) <= floor.left()


def test_a_floor_changes_types_and_is_kept(llama: Header, config: Config, speeds: Any) -> None:
    table, budget = sensitivity_of(llama, types=CANDIDATES), {"bpw": 5.0}
    free, plain = size_targeted(llama, table, config(budget))
    assert "pace" not in plain
    path = speeds(llama)
    _, slow = size_targeted(llama, table, config(budget, floor=1.0), speeds=path)
    assert slow["rules"] == plain["rules"]
    floor = (slow["pace"]["predicted"] + slow["pace"]["fastest"]) / 2
    fast, report = size_targeted(llama, table, config(budget, floor=floor), speeds=path)
    assert fast != free and report["objective"] > slow["objective"]
    assert floor <= report["pace"]["predicted"] <= report["pace"]["fastest"]
    assert report["file_bytes"] <= report["budget"]["bytes"]
    source = table_of(llama)
    own = {(t["columns"], t["rows"], t["type"]): t["generate"]["median"] for t in source["types"]}
    weights = sum(own[*tensor.shape, tensor.type] for tensor in weights_of(llama))
    assert report["pace"]["rest"] == pytest.approx(max(0.0, 1 / 40 - weights), abs=1e-9)


def test_a_floor_that_cannot_be_had_is_refused_with_the_most_that_can(
    llama: Header, config: Config, speeds: Any
) -> None:
    table, path = sensitivity_of(llama, types=CANDIDATES), speeds(llama)
    with pytest.raises(QuantmillError) as error:
        size_targeted(llama, table, config({"bpw": 5.0}, floor=1e6), speeds=path)
    text = str(error.value)
    most = float(text.split("ask for ")[1].split()[0])
    assert text == (
        f"recipe fit.at_least.tg: 1e+06 tokens a second cannot be had within its budget: {most:g} are the"
        f" most on Example CPU, 2 threads; ask for {most:g} or less, add faster types, or give it a larger"
        " budget"
    )
    _, report = size_targeted(llama, table, config({"bpw": 5.0}, floor=most), speeds=path)
    assert most <= report["pace"]["predicted"]


def test_of_two_memories_each_has_its_devices_times(moe: Header, config: Config, speeds: Any) -> None:
    table = sensitivity_of(moe, types=CANDIDATES)
    budget = {
        "pools": {"gpu": 8 * MIB, "cpu": 6 * MIB, "reserve": 0, "context": 256, "cache": "f16"},
    }
    one = size_targeted(moe, table, config(budget, floor=1.0), speeds=speeds(moe))[1]
    both = speeds(moe, devices=("GPU", "CPU"))
    two = size_targeted(moe, table, config(budget, floor=1.0), speeds=both)[1]
    assert two["pools"] == one["pools"] and two["pace"]["predicted"] > one["pace"]["predicted"]
    floor = (two["pace"]["predicted"] + two["pace"]["fastest"]) / 2
    fast = size_targeted(moe, table, config(budget, floor=floor), speeds=both)[1]
    assert fast["pace"]["predicted"] >= floor > two["pace"]["predicted"]


def test_without_the_sources_speed_the_weights_alone_count(
    llama: Header, config: Config, speeds: Any
) -> None:
    table = sensitivity_of(llama, types=CANDIDATES)
    _, report = size_targeted(
        llama, table, config({"bpw": 5.0}, floor=1.0), speeds=speeds(llama, tokens=None)
    )
    assert report["pace"]["rest"] == 0.0 and report["pace"]["source"] is None
    assert (
        "tg is predicted by the weights alone, too high: the source's own speed is not known "
        "(only its header is here)" in report["warnings"]
    )


def test_a_table_that_lacks_a_type_is_refused(llama: Header, config: Config, speeds: Any) -> None:
    path = speeds(llama)
    report = json.loads(path.read_text("utf-8"))
    report["types"] = [one for one in report["types"] if one["type"] != "q6_K"]
    path.write_text(json.dumps(report), encoding="utf-8")
    table = sensitivity_of(llama, types=CANDIDATES)
    with pytest.raises(QuantmillError) as error:
        size_targeted(llama, table, config({"bpw": 5.0}, floor=1.0), speeds=path)
    assert str(error.value).startswith("speeds.json: has no time of ")
    assert str(error.value).endswith(" at q6_K; delete it to have it measured again")


def test_what_a_token_is_multiplied_by(moe: Header, llama: Header) -> None:
    """Not the embeddings, whose rows are looked up, unless they are the output; of experts those used."""
    assert pace.shape_of(moe, "token_embd.weight", (256, 2048)) is None
    experts = next(t for t in moe.tensors if "ffn_up_exps" in t.name)
    used = moe.number(f"{moe.architecture}.expert_used_count")
    assert pace.shape_of(moe, experts.name, experts.shape) == (*experts.shape, used)
    names = {tensor.name for tensor in llama.tensors}
    looked_up = pace.shape_of(llama, "token_embd.weight", (256, 2048))
    assert (looked_up is None) == ("output.weight" in names)
