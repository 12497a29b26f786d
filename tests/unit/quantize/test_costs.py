"""The expected times of quantizing: every type has one, and what is in the store takes none."""

from dataclasses import replace
from pathlib import Path

import pytest

from quantmill.formats.types import writable
from quantmill.quantize import costs
from quantmill.quantize.kernels import task
from quantmill.store import Store

ONE = task("blk.0.ffn_up.weight", "ab", "f16", "iq2_xs", (1000, 2000), None)


@pytest.mark.parametrize("engine", ["mainline", "ik"])
def test_every_type_that_can_be_written_has_a_cost(engine: str) -> None:
    assert writable(engine) <= costs.NANOSECONDS.keys()


def test_a_task_takes_what_its_type_takes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    same = replace(ONE, type="f16")
    fed_back = replace(ONE, moments="cd")
    sized = [(one, 10**6) for one in (ONE, same, fed_back)]
    made, copied, rounded = costs.of_tasks(sized, "engine", store, threads=2)
    assert copied == ("copy", pytest.approx(0.003))
    assert made == ("iq2_xs", pytest.approx(1.003))
    assert (rounded.kind, rounded.amount > made.amount) == ("iq2_xs fed back", True)


def test_what_is_in_the_store_is_copied(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(ONE.key("engine"), b"x")
    (found,) = costs.of_tasks([(ONE, 10**6)], "engine", store, threads=2)
    (other,) = costs.of_tasks([(ONE, 10**6)], "another engine", store, threads=2)
    assert (found.kind, other.kind) == ("copy", "iq2_xs")
