"""Quantizing is refused where the disk or the memory has no room, before anything is written."""

from pathlib import Path

import pytest

from quantmill import machine
from quantmill.errors import QuantmillError
from quantmill.formats.plan import PlanRow
from quantmill.quantize import write

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
