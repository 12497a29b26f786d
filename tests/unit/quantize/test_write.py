"""Quantizing is refused where the disk or the memory has no room, before anything is written."""

from dataclasses import replace
from pathlib import Path

import pytest

from quantmill import machine
from quantmill.errors import QuantmillError
from quantmill.formats.plan import PlanRow
from quantmill.quantize import write
from quantmill.quantize.kernels import task
from quantmill.store import Store

GIB = 1 << 30


def row(name: str, size: int) -> PlanRow:
    return PlanRow(name, "other", -1, (32, size // 34), "f16", "q8_0", size, "a rule")


def test_a_tensor_larger_than_what_the_cgroup_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("small", GIB), row("large", 5 * GIB)]
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(4 * GIB, GIB, "its cgroup"))
    with pytest.raises(QuantmillError) as refused:
        write.refuse_if_short(tmp_path / "x.gguf", 1000, rows, {})
    assert str(refused.value) == (
        "large: needs 5,368,709,120 bytes of memory, its cgroup has 4,294,967,296;"
        " allow it more, or use a larger machine"
    )
    write.refuse_if_short(tmp_path / "x.gguf", 1000, rows[:1], {})


def test_the_moments_of_a_single_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("small", GIB), row("large", 2 * GIB)]
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(4 * GIB, GIB, "its cgroup"))
    with pytest.raises(QuantmillError) as refused:
        write.refuse_if_short(tmp_path / "x.gguf", 1000, rows, {"small": 4 * GIB})
    assert str(refused.value) == (
        "small: needs 5,368,709,120 bytes of memory (4,294,967,296 of them for the second moments), "
        "its cgroup has 4,294,967,296; allow it more, or use a larger machine, or `rounding: nearest`"
    )


def test_a_disk_without_room(tmp_path: Path) -> None:
    with pytest.raises(QuantmillError, match=r"needs .* bytes, the disk has .* left; free some space"):
        write.refuse_if_short(tmp_path / "x.gguf", 1 << 60, [row("small", 34)], {})


@pytest.mark.parametrize(("linked", "size"), [(False, 34 + 68 + 68), (True, 68)])
def test_the_store_is_told_of_the_units_and_of_what_it_will_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool, size: int
) -> None:
    """A file that the store has a link to holds its own; what is rounded anew is kept rounded to nearest."""
    told: list[tuple[list[str], int]] = []
    monkeypatch.setattr(Store, "expect", lambda _, keys, size: told.append((keys, size)))
    rows = [row("changed", 34), row("fed back", 68), replace(row("unchanged", 64), type="f16")]
    todo = [task(one.name, one.name, one.source_type, one.type, one.shape, None) for one in rows]
    todo[1] = replace(todo[1], moments="key")
    write.expect(todo, rows, "engine", Store(tmp_path), linked=linked)
    used = [*todo[:2], replace(todo[1], moments=None)]
    assert told == [([one.key("engine") for one in used], size)]
