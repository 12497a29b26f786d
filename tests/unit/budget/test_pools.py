"""Two memories: exact for every number of layers on the CPU, within both, with the flags that do it."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from budget_data import sensitivity_of
from quantmill.budget import pools
from quantmill.budget.allocate import size_targeted
from quantmill.budget.candidates import Choice, Group
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, Tensor, padded
from quantmill.formats.types import tensor_bytes
from quantmill.model import memory
from quantmill.recipe import plan, presets, rules

Config = Callable[..., dict[str, Any]]
MIB = 1 << 20


def budget(gpu: int, cpu: int, **more: Any) -> dict[str, Any]:
    return {"pools": {"gpu": gpu, "cpu": cpu, "reserve": 0, "context": 256, "cache": "f16", **more}}


def planned(header: Header, recipe: rules.Recipe) -> dict[str, tuple[str, int]]:
    """The type and the padded bytes of each tensor of the file."""
    read = rules.parse(rules.dump(recipe), "fit.yaml")
    mixture = presets.mixture(header, read.base, imatrix=True)
    resolved = plan.resolve(header, read, mixture, imatrix=True, where="fit.yaml")
    return {row.name: (row.type, padded(row.bytes)) for row in resolved.rows}


def test_both_memories_hold_what_the_flags_put_there(moe: Header, config: Config) -> None:
    """What llama.cpp's own regular expression matches is on the CPU, with the embeddings."""
    table = [replace(row, kld=1 - 1e-9 * row.bytes) for row in sensitivity_of(moe)]  # larger is better
    seen = set()
    for gpu, cpu in ((8 * MIB, 6 * MIB), (int(6.7 * MIB), 7 * MIB), (12 * MIB, 12 * MIB)):
        recipe, report = size_targeted(moe, table, config(budget(gpu, cpu)))
        found, tensors = report["pools"], planned(moe, recipe)
        pattern = (
            re.compile(found["override"].removesuffix("=CPU")) if found["override"] else re.compile("$^")
        )
        on_cpu = {name for name in tensors if pattern.search(name)} | {"token_embd.weight"}
        assert {int(name.split(".")[1]) for name in on_cpu if "exps" in name} == set(found["on_cpu"])
        sizes = [
            sum(size for name, (_, size) in tensors.items() if (name in on_cpu) == side) for side in (0, 1)
        ]
        assert sizes[0] == found["gpu"]["weights"] + found["gpu"]["experts"]
        assert sizes[1] == found["cpu"]["weights"] + found["cpu"]["experts"]
        for pool, size in (("gpu", gpu), ("cpu", cpu)):
            assert sum(value for key, value in found[pool].items() if key != "total") <= size
        assert report["file_bytes"] == sum(sizes) + report["metadata_bytes"] <= report["budget"]["bytes"]
        count = found["flags"][found["flags"].index("--n-cpu-moe") + 1] if found["on_cpu"] else "0"
        assert found["on_cpu"] == list(range(int(count)))
        seen.add(int(count))
    assert len(seen) > 1


def a_group(draw: random.Random, name: str) -> Group:
    """A group of one tensor with three made-up choices."""
    tensor = Tensor(name, "f16", 1, (256, 1), 0, 0, 0)
    choices = sorted((draw.randrange(1, 30), draw.random()) for _ in range(3))
    return Group((tensor,), tuple(Choice("q8_0", ("q8_0",), size, cost, ()) for size, cost in choices))


def a_room(gpu: int, cpu: int, layers: int) -> pools.Room:
    given: Any = budget(gpu, cpu)["pools"]
    return pools.Room(given, memory.Memory(0, 0, 0), pools.Fixed(), tuple(range(layers)), 0, 0)


@pytest.mark.parametrize("seed", range(30))
def test_it_is_the_optimum_over_all_choices_and_all_numbers_of_layers(seed: int) -> None:
    draw = random.Random(seed)
    names = ["token_embd.weight", "output.weight", *(f"blk.{n}.ffn_up_exps.weight" for n in range(4))]
    groups = [a_group(draw, name) for name in names]
    gpu, cpu = draw.randrange(20, 90), draw.randrange(20, 90)
    best = None
    for count, picks in itertools.product(range(5), itertools.product(range(3), repeat=6)):
        chosen = [group.choices[pick] for group, pick in zip(groups, picks, strict=True)]
        on_cpu = chosen[0].bytes + sum(choice.bytes for choice in chosen[2 : 2 + count])
        fits = on_cpu <= cpu and sum(choice.bytes for choice in chosen) - on_cpu <= gpu
        cost = sum(choice.cost for choice in chosen)
        if fits and (best is None or (cost, count) < (best[0] - 1e-12, best[1])):
            best = cost, count
    if best is None:
        with pytest.raises(QuantmillError, match="cannot hold it"):
            pools.solve(groups, a_room(gpu, cpu, 4), "recipe fit")
        return
    count, solution = pools.solve(groups, a_room(gpu, cpu, 4), "recipe fit")
    assert solution.cost == pytest.approx(best[0]) and solution.gap < 1e-9
    assert count <= best[1]


def test_of_equal_choices_that_with_the_most_on_the_gpu_is_taken() -> None:
    draw = random.Random(1)
    groups = [
        a_group(draw, name) for name in ("output.weight", *(f"blk.{n}.ffn_up_exps.weight" for n in range(3)))
    ]
    assert pools.solve(groups, a_room(1000, 1000, 3), "fit")[0] == 0
    assert pools.solve(groups, a_room(1000, 0, 3), "fit")[0] == 0


def test_the_least_that_can_hold_it_is_said_and_holds_it(moe: Header, config: Config) -> None:
    table = sensitivity_of(moe)

    def refused(gpu: int, cpu: int) -> str:
        with pytest.raises(QuantmillError) as error:
            size_targeted(moe, table, config(budget(gpu, cpu)))
        return str(error.value)

    assert refused(MIB, 40 * MIB) == (
        "recipe fit.memory: 1.0 MiB of GPU and 40.0 MiB of CPU memory cannot hold it: the GPU needs 4.4 MiB "
        "at least, with all experts on the CPU; give it about that, or ask for a shorter context or a "
        "smaller cache, or add types of fewer bits"
    )
    size_targeted(moe, table, config(budget(int(4.45 * MIB), 40 * MIB)))
    said = refused(int(4.45 * MIB), 2 * MIB)
    assert "2.0 MiB of CPU memory cannot hold it: beside such a GPU the CPU needs " in said
    least = float(re.findall(r"needs ([\d.]+) MiB", said)[0])
    size_targeted(moe, table, config(budget(int(4.45 * MIB), int((least + 0.05) * MIB))))


def test_a_dense_model_is_refused(llama: Header, config: Config) -> None:
    with pytest.raises(QuantmillError) as error:
        size_targeted(llama, sensitivity_of(llama), config(budget(40 * MIB, 40 * MIB)))
    assert str(error.value) == (
        "recipe fit: two memories are for mixtures of experts, and the model is none; "
        "give it a memory of one device: {total: 16 GiB, context: 32768}"
    )


def test_what_shares_a_type_must_be_in_one_memory(moe: Header, config: Config) -> None:
    spec = config(budget(40 * MIB, 40 * MIB), harmonize=[["ffn_down_exps", "ffn_down_shexp"]])
    with pytest.raises(QuantmillError) as error:
        size_targeted(moe, sensitivity_of(moe), spec)
    assert re.fullmatch(
        r"recipe fit: blk\.0\.ffn_down_\S+ and blk\.0\.ffn_down_\S+ share a type and are not in the same "
        "memory; leave them apart under harmonize",
        str(error.value),
    )


def test_embeddings_that_are_the_output_too_are_in_both_memories(moe: Header, config: Config) -> None:
    tied = replace(moe, tensors=tuple(t for t in moe.tensors if t.name != "output.weight"))
    table = [row for row in sensitivity_of(moe) if row.name != "output.weight"]
    recipe, report = size_targeted(tied, table, config(budget(20 * MIB, 20 * MIB)))
    kind, size = planned(tied, recipe)["token_embd.weight"]
    largest = max(padded(row.bytes) for row in table if row.name == "token_embd.weight")
    assert report["pools"]["cpu"]["weights"] == largest >= size == padded(tensor_bytes(kind, (256, 2048)))
    assert report["pools"]["gpu"]["weights"] > size
    pin = [{"role": "token_embd", "type": "q8_0"}]
    _, report = size_targeted(tied, table, config(budget(20 * MIB, 20 * MIB), pin=pin))
    pinned = padded(tensor_bytes("q8_0", (256, 2048)))
    assert report["pools"]["cpu"]["weights"] == pinned < report["pools"]["gpu"]["weights"]


def test_pinned_tensors_are_counted_where_they_are(moe: Header, config: Config) -> None:
    pin = [{"role": ["ffn_down_exps", "token_embd"], "type": "q8_0"}, {"role": "output", "type": "f16"}]
    _, report = size_targeted(moe, sensitivity_of(moe), config(budget(12 * MIB, 12 * MIB), pin=pin))
    embeddings = padded(tensor_bytes("q8_0", (256, 2048)))
    assert report["pools"]["cpu"]["weights"] == embeddings
    assert report["pools"]["gpu"]["weights"] > tensor_bytes("f16", (256, 2048))


def test_the_flags_of_a_quantized_cache(moe: Header, config: Config) -> None:
    spec = config(budget(20 * MIB, 20 * MIB, cache="q8_0", context=512))
    _, report = size_targeted(moe, sensitivity_of(moe), spec)
    assert " ".join(report["pools"]["flags"]) == "-ngl 99 -c 512 -fa on -ctk q8_0 -ctv q8_0"
    assert report["pools"]["override"] == "" and report["memory"] is None
