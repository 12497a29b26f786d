"""The table of a plan: what is written is what is read."""

from pathlib import Path

import pytest

from quantmill.errors import QuantmillError
from quantmill.formats.plan import COLUMNS, MADE, PlanRow, read_plan, with_scale, write_plan

ROWS = [
    PlanRow("output.weight", "output", -1, (512, 8), "f16", "q6_K", 3360, "rule 1: budget"),
    PlanRow("blk.0.ffn_up_exps.scale", "scale", 0, (4,), MADE, "f32", 16, "second scale of its weight"),
]


def test_rows_survive_the_file(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.tsv", ROWS)
    assert read_plan(tmp_path / "plan.tsv") == ROWS
    assert (tmp_path / "plan.tsv").read_text("utf-8").splitlines()[0].split("\t") == COLUMNS
    assert with_scale(ROWS) == ["blk.0.ffn_up_exps.weight"]


@pytest.mark.parametrize("text", ["name\trole\na\tb\n", "", "\t".join(COLUMNS) + "\n" + "x\t" * 7 + "x\n"])
def test_another_table_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(QuantmillError, match=r"plan\.tsv.*delete it to have it made again"):
        read_plan(tmp_path / "plan.tsv")
