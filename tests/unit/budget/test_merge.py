"""Merged rules against the allocation that they stand for, tensor by tensor."""

import random
import re

import pytest

from models import write_llama
from quantmill.budget.merge import as_lines, merged
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.plan import PlanRow
from quantmill.model.roles import layer_of, role_of
from quantmill.recipe import presets, rules
from quantmill.recipe.rules import Recipe, Rule

TYPES = ("q3_K", "q4_K", "q5_K", "q6_K", "q8_0")


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    path = tmp_path_factory.mktemp("merge") / "small.gguf"
    return read_header(write_llama(path, width=256, layers=6, tied=False))


def rows(header: Header) -> list[PlanRow]:
    return [
        PlanRow(t.name, role_of(t.name), layer_of(t.name), t.shape, t.type, t.type, t.bytes, "")
        for t in header.tensors
        if len(t.shape) > 1
    ]


def decided(header: Header, made: list[Rule]) -> dict[str, str]:
    """What the recipe language makes of the rules, written to YAML and read again."""
    text = rules.dump(Recipe("mainline", presets.resolve("q8_0"), "optional", tuple(made)))
    quantizable = frozenset(row.name for row in rows(header))
    by_name = rules.assign(rules.parse(text, "test"), header, quantizable, "test")
    return {name: rule.type for name, rule in by_name.items()}


@pytest.mark.parametrize("seed", range(20))
def test_rules_equal_the_allocation(header: Header, seed: int) -> None:
    draw = random.Random(seed)
    tensors = rows(header)
    weights = [draw.random() ** 3 for _ in TYPES]
    types = {row.name: draw.choices(TYPES, weights)[0] for row in tensors}
    assert decided(header, merged(tensors, types)) == types


def test_pinned_tensors_come_first_and_need_no_other_rule(header: Header) -> None:
    tensors = rows(header)
    pins = [Rule(1, "q8_0", ("ffn_down",), layers=(0, 5), why="pinned")]
    types = {row.name: "q8_0" if pins[0].matches(row.name) else "q4_K" for row in tensors}
    made = merged([row for row in tensors if not pins[0].matches(row.name)], types, pins)
    assert made[0].why == "pinned" and len(made) == 2
    assert decided(header, made) == types


def test_rules_are_few_and_shared(header: Header) -> None:
    tensors = rows(header)
    odd = {"ffn_gate", "ffn_up"}
    types = {row.name: "q6_K" if row.role in odd and row.layer in (1, 3) else "q4_K" for row in tensors}
    made = merged(tensors, types)
    assert (made[0].type, set(made[0].roles), made[0].layers) == ("q6_K", odd, (1, 3))
    assert len(made) == 2


def test_several_tensors_of_a_role_in_a_layer_are_named() -> None:
    tensors = [
        PlanRow(f"blk.0.ffn_up.{i}.weight", "ffn_up", 0, (256, 256), "f16", "f16", 0, "") for i in range(3)
    ] + [PlanRow("blk.0.strange.weight", "strange", 0, (256, 256), "f16", "f16", 0, "")]
    types = dict(zip((row.name for row in tensors), ("q4_K", "q6_K", "q4_K", "q8_0"), strict=True))
    made = merged(tensors, types)
    chosen = {row.name: next(rule.type for rule in made if rule.matches(row.name)) for row in tensors}
    assert chosen == types


@pytest.mark.parametrize("seed", range(5))
def test_lines_equal_the_allocation_in_any_order(header: Header, seed: int) -> None:
    draw = random.Random(seed)
    types = {row.name: draw.choice(TYPES) for row in rows(header)}
    lines = [line.rsplit("=", 1) for line in as_lines(types)]
    draw.shuffle(lines)
    for name, kind in types.items():
        assert [matched for pattern, matched in lines if re.search(pattern, name)] == [kind]


def test_a_line_names_its_layers() -> None:
    types = {f"blk.{i}.ffn_down.weight": "q6_K" if i < 3 else "q4_K" for i in (0, 1, 2, 10)}
    assert as_lines({**types, "output.weight": "q8_0"}) == [
        r"^output\.weight$=q8_0",
        r"^blk\.(0|1|2)\.ffn_down\.weight$=q6_K",
        r"^blk\.10\.ffn_down\.weight$=q4_K",
    ]
