"""The table of sensitivities: what is written is what is read."""

from math import isnan
from pathlib import Path

import pytest

from quantmill.errors import QuantmillError
from quantmill.formats.sensitivity import COLUMNS, SensitivityRow, read_sensitivity, write_sensitivity

ROWS = [
    SensitivityRow(
        "blk.0.ffn_up.weight",
        "ffn_up",
        0,
        (512, 1024),
        "q4_K",
        294912,
        0.01,
        0.0,
        1.5e-4,
        2e-6,
        estimate=1.6e-4,
    ),
    SensitivityRow(
        "output.weight", "output", -1, (512, 8, 2), "q6_K", 6720, 1e-4, 1e-6, -3e-7, 1e-6, "predicted"
    ),
]


def test_rows_survive_the_file(tmp_path: Path) -> None:
    write_sensitivity(tmp_path / "sensitivity.tsv", ROWS)
    rows = read_sensitivity(tmp_path / "sensitivity.tsv")
    assert list(map(repr, rows)) == list(map(repr, ROWS))  # NaN equals nothing
    assert [row.delta_kld for row in rows] == [1.6e-4, -3e-7]
    assert (tmp_path / "sensitivity.tsv").read_text("utf-8").splitlines()[0].split("\t") == COLUMNS


def test_an_unknown_value_is_an_empty_cell(tmp_path: Path) -> None:
    row = SensitivityRow(
        "output.weight", "output", -1, (512, 8), "q6_K", 3360, kld=0.1, se=0.01, how="imported"
    )
    write_sensitivity(tmp_path / "sensitivity.tsv", [row])
    assert "\t3360\t\t\t0.1\t0.01\timported\t\n" in (tmp_path / "sensitivity.tsv").read_text("utf-8")
    (read,) = read_sensitivity(tmp_path / "sensitivity.tsv")
    assert isnan(read.error) and isnan(read.error_se) and read.kld == 0.1
    assert isnan(read.estimate) and read.delta_kld == 0.1


@pytest.mark.parametrize("text", ["name\trole\na\tb\n", "", "\t".join(COLUMNS) + "\n" + "x\t" * 10 + "x\n"])
def test_another_table_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "sensitivity.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(QuantmillError, match=r"sensitivity\.tsv"):
        read_sensitivity(tmp_path / "sensitivity.tsv")
