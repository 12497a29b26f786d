"""The draft head in a budget: its bytes count against the size, at the types that `mtp` gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budget_data import sensitivity_of
from quantmill.budget.allocate import size_targeted
from quantmill.budget.feasibility import problem
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.types import tensor_bytes
from quantmill.model.heads import for_file
from quantmill.model.roles import layer_of
from quantmill.recipe import plan, presets

MTP = Path(__file__).parents[2] / "data" / "tiny-mtp-Q8_0.gguf"
Config = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def header() -> Header:
    return read_header(MTP)


def matrices(header: Header) -> list[Any]:
    """The head's."""
    return [t for t in header.tensors if layer_of(t.name) == 2 and len(t.shape) > 1]


def planned(header: Header, spec: dict[str, Any]) -> tuple[dict[str, str], int, Any]:
    """The type of each tensor and the bytes of the file, by the plan of the allocation's recipe."""
    recipe, report = size_targeted(header, sensitivity_of(header), spec)
    part = for_file(header, spec.get("mtp"))
    mixture = presets.mixture(part, recipe.base, imatrix=True)
    made = plan.resolve(part, recipe, mixture, imatrix=True, where="r.yaml")
    size = plan.report(part, made, "fit", spec["imatrix"])["file_bytes"]
    return {row.name: row.type for row in made.rows}, size, report


def test_the_heads_types_are_given_and_its_bytes_count(header: Header, config: Config) -> None:
    spec = config({"bpw": 5.0})
    budget = problem(header, sensitivity_of(header), spec).budget
    types, size, report = planned(header, spec | {"mtp": {"type": "q8_0"}})
    assert {types[t.name] for t in matrices(header)} == {"q8_0"}
    assert size == report["file_bytes"] <= budget == report["budget"]["bytes"]
    assert report["pinned"] == sorted(t.name for t in matrices(header))
    fixed = [
        problem(header, sensitivity_of(header), spec | {"mtp": {"type": kind}}).fixed
        for kind in ("q8_0", "q4_K")
    ]
    expected = [sum(tensor_bytes(kind, t.shape) for t in matrices(header)) for kind in ("q8_0", "q4_K")]
    assert fixed[0] - fixed[1] == expected[0] - expected[1]


def test_without_the_head_the_whole_size_is_for_the_rest(header: Header, config: Config) -> None:
    spec = config({"size": 1_500_000})
    types, size, report = planned(header, spec | {"mtp": "none"})
    assert not any(layer_of(name) == 2 for name in types)
    assert size == report["file_bytes"] <= 1_500_000
    kept = planned(header, spec | {"mtp": {"type": "q8_0"}})[2]
    assert report["predicted_kld"] < kept["predicted_kld"]


def test_rules_that_are_pinned_come_after_those_of_the_head(header: Header, config: Config) -> None:
    pin = [{"role": "attn_q", "type": "q6_K"}]
    types, _, _ = planned(header, config({"bpw": 6.0}, pin=pin) | {"mtp": {"attention": "q8_0"}})
    assert (types["blk.1.attn_q.weight"], types["blk.2.attn_q.weight"]) == ("q6_K", "q8_0")


def test_a_type_without_values_is_refused_before_anything_is_measured(header: Header, config: Config) -> None:
    spec = config({"bpw": 5.0}) | {"mtp": {"type": "iq2_xs"}}
    with pytest.raises(QuantmillError) as refused:
        problem(header, sensitivity_of(header), spec)
    assert str(refused.value) == (
        "recipe fit: blk.2.attn_k.weight (rule 1: draft head): iq2_xs needs an imatrix, which no multi-token "
        "prediction layer has; set `imatrix: {mtp: true}`, or give the recipe `mtp: {type: q4_K}` or another "
        "such type"
    )
    spec["imatrix"] |= {"mtp": True}
    assert set(problem(header, sensitivity_of(header), spec).pinned.values()) == {"iq2_xs"}


def test_a_model_without_a_head_is_refused(llama: Header, config: Config) -> None:
    with pytest.raises(QuantmillError, match=r"^recipe fit: mtp: the model has no draft head"):
        problem(llama, sensitivity_of(llama), config({"bpw": 5.0}) | {"mtp": "none"})
