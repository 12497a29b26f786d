"""Imported sensitivities: the formula, warnings of odd values, and files of another kind."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from budget_data import DATA
from quantmill.budget.candidates import Settings, make_groups
from quantmill.errors import QuantmillError
from quantmill.formats.plan import PlanRow
from quantmill.formats.sensitivity import read_sensitivity
from quantmill.sensitivity.imported import Imported, convert, read_curve, read_results

CURVE = {"bf16": 0.0, "q2_K": 0.2, "q3_K": 0.07, "q4_K": 0.02, "iq4_kt": 0.024, "q6_K": 0.002, "q8_0": 0.001}


def tensor(name: str, role: str, width: int = 512) -> PlanRow:
    return PlanRow(name, role, 0, (width, 4), "f16", "f16", 8 * width, "")


TENSORS = [*(tensor(f"blk.{i}.attn_q.weight", "attn_q") for i in range(3)), tensor("output.weight", "output")]
VALUES = {row.name: value for row, value in zip(TENSORS, (0.1, 0.3, 0.2, 1.0), strict=True)}


def klds(imported: Imported) -> dict[tuple[str, str], float]:
    return {(row.name, row.type): row.kld for row in imported.rows}


def test_the_sensitivity_is_the_tensors_own_times_the_curve() -> None:
    imported = convert(TENSORS, {"q2_K": VALUES}, CURVE)
    kld = klds(imported)
    assert kld["blk.1.attn_q.weight", "q2_K"] == 0.3
    assert kld["blk.1.attn_q.weight", "q6_K"] == pytest.approx(0.3 * 0.002 / 0.2)
    assert {row.how for row in imported.rows} == {"imported"}
    assert all(math.isnan(row.se) and math.isnan(row.error) for row in imported.rows)
    # the baseline is no choice; bytes have what ik's types add to a row
    assert {kind for _, kind in kld} == set(CURVE) - {"bf16"}
    assert next(row.bytes for row in imported.rows if row.type == "iq4_kt") == 4 * (2 * 128 + 4)
    assert imported.warnings == []


def test_of_several_rows_the_nearest_on_the_curve_is_taken() -> None:
    fine = {name: value / 50 for name, value in VALUES.items()} | {"output.weight": 0.5}
    kld = klds(convert(TENSORS, {"q2_K": VALUES, "q4_K": fine}, CURVE))
    assert kld["output.weight", "q2_K"] == 1.0 and kld["output.weight", "q4_K"] == 0.5
    assert kld["output.weight", "q3_K"] == pytest.approx(1.0 * 0.07 / 0.2)
    assert kld["output.weight", "q8_0"] == pytest.approx(0.5 * 0.001 / 0.02)


def test_what_was_not_measured_gets_the_median_of_its_role() -> None:
    values = dict(VALUES, **{"blk.1.attn_q.weight": 404.0})
    del values["output.weight"]
    imported = convert(TENSORS, {"q2_K": values}, CURVE)
    assert klds(imported)["blk.1.attn_q.weight", "q2_K"] == pytest.approx(0.15)
    assert klds(imported)["output.weight", "q2_K"] == pytest.approx(0.15)
    warnings = "\n".join(imported.warnings)
    assert "q2_K: no column for 1 tensor (output.weight)" in warnings
    assert "q2_K: 404, not measured, for 1 tensor (blk.1.attn_q.weight)" in warnings


def test_oddities_are_warned_of() -> None:
    curve = CURVE | {"q4_k_r4": 0.02, "q5_K": 0.05, "q5_0": 0.0}
    imported = convert(TENSORS, {"q2_K": VALUES | {"output.weight": 0.0, "blk.9.attn_q.weight": 1.0}}, curve)
    warnings = "\n".join(imported.warnings)
    assert "neither engine has 1 type (q4_k_r4) of the curve" in warnings
    assert "the curve is zero at 1 type (q5_0) that cannot be: left out" in warnings
    assert "the curve rises with bits: 1 type (q5_K (0.05) above iq4_kt (0.024))" in warnings
    assert "q2_K: exactly zero for 1 tensor (output.weight)" in warnings
    assert "the model has not, or never quantizes, 1 column (blk.9.attn_q.weight)" in warnings
    assert klds(imported)["output.weight", "q2_K"] == 0.0
    assert ("output.weight", "q5_0") not in klds(imported)


def test_a_narrow_tensor_stands_under_the_type_it_falls_back_to() -> None:
    curve = CURVE | {"q5_0": 0.008}
    imported = convert([tensor("output.weight", "output", 576)], {"q2_K": VALUES}, curve)
    kld = klds(imported)
    assert kld["output.weight", "q5_0"] == pytest.approx(0.008 / 0.2)
    # q4_0 is not on the curve: what falls back to it keeps its own value
    assert kld["output.weight", "q4_0"] == pytest.approx(1.0)
    assert ("output.weight", "q4_K") not in kld


def test_a_type_that_the_curve_has_not_measured_is_no_choice() -> None:
    imported = convert(TENSORS, {"q2_K": VALUES}, CURVE | {"q4_K": 404.0})
    assert imported.warnings == ["404, not measured, at 1 type (q4_K) of the curve: left out"]
    assert {kind for _, kind in klds(imported)} == set(CURVE) - {"bf16", "q4_K"}
    with pytest.raises(QuantmillError, match="the curve has no value for q2_K"):
        convert(TENSORS, {"q2_K": VALUES}, CURVE | {"q2_K": 404.0})


def test_a_table_from_a_spreadsheet_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "kld.csv").write_bytes(b"\xef\xbb\xbfQTYPE,a\r\nq2_K,0.1\r\n")
    assert read_results(tmp_path / "kld.csv") == {"q2_K": {"a": 0.1}}
    (tmp_path / "kld.csv").write_bytes("QTYPE,a\u2028b\r\nq2_K,0.1\r\n".encode("utf-16"))
    assert read_results(tmp_path / "kld.csv") == {"q2_K": {"a\u2028b": 0.1}}


def test_the_imported_rows_are_choices() -> None:
    imported = convert(TENSORS, {"q2_K": VALUES}, CURVE)
    types = {}
    for engine in ("ik", "mainline"):
        first, *_ = make_groups(TENSORS, imported.rows, Settings(engine=engine), None, "x")
        types[engine] = {choice.type for choice in first.choices}
    assert types["ik"] - types["mainline"] == {"iq4_kt"}


def test_a_type_without_a_point_of_the_curve_is_refused() -> None:
    with pytest.raises(QuantmillError, match="the curve has no value for iq1_kt"):
        convert(TENSORS, {"iq1_kt": VALUES}, CURVE)
    with pytest.raises(QuantmillError, match="the row q2_K has no value of any tensor of the model"):
        convert(TENSORS, {"q2_K": {"other": 1.0}}, CURVE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("QTYPE,a,b\nq2_K,0.1,much\n", "much at q2_K, b is no number"),
        ("QTYPE,a,b\nq2_K,0.1,\n", "an empty cell at q2_K, b is no number"),
        ("QTYPE,a,b\nq2_K,0.1,-0.2\n", "-0.2 at q2_K, b: a KL divergence is never negative"),
        ("QTYPE,a,b\nq2_K,0.1,nan\n", "nan at q2_K, b"),
        ("QTYPE,a,b\nq2_K,0.1\n", "row 2 has 2 cells, not 3"),
        ("QTYPE,a,a\nq2_K,0.1,0.2\n", "the column a is there twice"),
        ("QTYPE,a\nq2_K,0.1\nq2_K,0.1\n", "the row q2_K is there twice"),
        ("a,b\n1,2\n", "no table of sensitivities"),
        ("", "no table of sensitivities"),
    ],
)
def test_a_broken_table_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "kld_results.csv").write_text(text, encoding="utf-8")
    with pytest.raises(QuantmillError) as error:
        read_results(tmp_path / "kld_results.csv")
    assert message in str(error.value) and "kld_results.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_writes_the_table_of_sensitivities(tmp_path: Path) -> None:
    names = ["token_embd.weight", "output.weight"]
    (tmp_path / "kld.csv").write_text(f"QTYPE,{','.join(names)}\nq2_K,0.1,404\n", encoding="utf-8")
    (tmp_path / "curve.csv").write_text("QTYPE,group0\nbf16,0\nq2_K,0.2\nq4_K,0.02\n", encoding="utf-8")
    assert read_curve(tmp_path / "curve.csv") == {"bf16": 0.0, "q2_K": 0.2, "q4_K": 0.02}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "quantmill.sensitivity.imported",
            "--spec",
            '{"config":{}}',
            "--model",
            DATA / "tiny-llama.gguf",
            "--results",
            tmp_path / "kld.csv",
            "--curve",
            tmp_path / "curve.csv",
            "--out",
            tmp_path / "sensitivity.tsv",
            "--report",
            tmp_path / "sensitivity.json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = read_sensitivity(tmp_path / "sensitivity.tsv")
    assert {row.kld for row in rows if row.type == "q2_K"} == {0.1}
    assert len(rows) == 2 * 16
    report = json.loads((tmp_path / "sensitivity.json").read_text("utf-8"))
    assert report["how"] == "imported" and report["tensors"] == 16
    assert any("no column for 14 tensors" in warning for warning in report["warnings"])
