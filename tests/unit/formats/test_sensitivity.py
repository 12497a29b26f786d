"""The table of damages: what is written is what is read."""

from math import isnan
from pathlib import Path

import pytest

from quantmill.errors import QuantmillError
from quantmill.formats.sensitivity import COLUMNS, Damage, read_damages, write_damages

ROWS = [
    Damage("blk.0.ffn_up.weight", "ffn_up", 0, (512, 1024), "q4_K", 294912, 0.01, 0.0, 1.5e-4, 2e-6,
           estimate=1.6e-4),
    Damage("output.weight", "output", -1, (512, 8, 2), "q6_K", 6720, 1e-4, 1e-6, -3e-7, 1e-6, "predicted"),
]  # fmt: skip


def test_rows_survive_the_file(tmp_path: Path) -> None:
    write_damages(tmp_path / "sensitivity.tsv", ROWS)
    found = read_damages(tmp_path / "sensitivity.tsv")
    assert list(map(repr, found)) == list(map(repr, ROWS))  # NaN equals nothing
    assert [row.damage for row in found] == [1.6e-4, -3e-7]
    assert (tmp_path / "sensitivity.tsv").read_text("utf-8").splitlines()[0].split("\t") == COLUMNS


def test_what_is_not_known_is_an_empty_cell(tmp_path: Path) -> None:
    row = Damage("output.weight", "output", -1, (512, 8), "q6_K", 3360, kld=0.1, se=0.01, how="imported")
    write_damages(tmp_path / "sensitivity.tsv", [row])
    assert "\t3360\t\t\t0.1\t0.01\timported\t\n" in (tmp_path / "sensitivity.tsv").read_text("utf-8")
    (found,) = read_damages(tmp_path / "sensitivity.tsv")
    assert isnan(found.error) and isnan(found.error_se) and found.kld == 0.1
    assert isnan(found.estimate) and found.damage == 0.1


@pytest.mark.parametrize("text", ["name\trole\na\tb\n", "", "\t".join(COLUMNS) + "\n" + "x\t" * 10 + "x\n"])
def test_another_table_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "sensitivity.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(QuantmillError, match=r"sensitivity\.tsv"):
        read_damages(tmp_path / "sensitivity.tsv")
