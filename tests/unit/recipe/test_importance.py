"""The layers' importance, of each source and of blends, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantmill.errors import QuantmillError
from quantmill.formats.imatrix import Entry, Imatrix
from quantmill.formats.sensitivity import SensitivityRow
from quantmill.recipe.importance import blend, from_imatrix, from_json, from_sensitivity, ranked


def entry(sums: list[list[float]], counts: list[float]) -> Entry:
    return Entry(np.array(sums, np.float32), np.array(counts, np.float32))


def test_each_expert_counts_by_its_own_count() -> None:
    imatrix = Imatrix(
        "c",
        1,
        8,
        {
            "blk.0.attn_q.weight": entry([[2.0, 4.0]], [2]),  # 3 a token
            "blk.0.ffn_up_exps.weight": entry([[10.0, 10.0], [1.0, 1.0], [0.0, 0.0]], [10, 1, 0]),  # 2 and 2
            "blk.1.attn_q.weight": entry([[8.0, 8.0]], [4]),
            "output.weight": entry([[99.0, 99.0]], [1]),
        },
    )
    assert from_imatrix(imatrix, [0, 1], "i") == {0: 5.0, 1: 4.0}
    with pytest.raises(QuantmillError, match=r"^i: no importance of layer 2; the imatrix has no entry"):
        from_imatrix(imatrix, [0, 1, 2], "i")


@pytest.mark.parametrize("given", [{"0": 3, "1": 0.5}, [3, 0.5]])
def test_scores_of_the_users_own(tmp_path: Path, given: Any) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    assert from_json(path, [0, 1]) == {0: 3.0, 1: 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"0": 1, "2": 1}', "scores.json: no importance of layer 1, 3; give every layer a score"),
        ("[1, 2, 3, 4, 5]", "scores layer 4, which the model does not have; its layers are 0 to 3"),
        ('{"a": 1}', "a: 1 is no layer's score"),
        ('{"0": "high"}', "0: 'high' is no layer's score"),
        ('{"0": NaN}', "0: nan is no layer's score"),
        ("7", "no scores of layers; it takes"),
        ("{", "no valid JSON"),
    ],
)
def test_wrong_scores_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QuantmillError, match=message):
        from_json(path, [0, 1, 2, 3])


def row(layer: int, role: str, kind: str, kld: float, error: float = 0.0) -> SensitivityRow:
    return SensitivityRow(f"blk.{layer}.{role}.weight", role, layer, (2, 2), kind, 1, error=error, kld=kld)


def test_scores_that_are_no_json_are_the_users_to_correct(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"0": 1', encoding="utf-8")
    with pytest.raises(QuantmillError, match=r"scores.json: no valid JSON .*; correct it"):
        from_json(tmp_path / "scores.json", [0])


def test_sensitivities_at_the_types_that_all_tensors_have() -> None:
    table = [
        row(0, "attn_q", "q4_K", 1.0),
        row(0, "attn_q", "q2_K", 100.0),
        row(0, "ffn_up", "q4_K", 0.5),
        row(1, "attn_q", "q4_K", 4.0),
    ]
    assert from_sensitivity(table, [0, 1], "s") == {0: 1.5, 1: 4.0}
    unmeasured = [*table, row(2, "attn_q", "q4_K", float("nan"), error=0.25)]
    assert from_sensitivity(unmeasured, [0, 1, 2], "s")[2] == 0.25
    with pytest.raises(QuantmillError, match=r"^s: no importance of layer 2"):
        from_sensitivity(table, [0, 1, 2], "s")


def test_a_blend_scales_each_source_first() -> None:
    large, small = {0: 1000.0, 1: 2000.0, 2: 3000.0}, {0: 0.3, 1: 0.2, 2: 0.1}
    assert blend([(large, 1.0), (small, 3.0)]) == pytest.approx({0: 0.75, 1: 0.5, 2: 0.25})
    assert blend([(large, 2.0), ({0: 7.0, 1: 7.0, 2: 7.0}, 2.0)]) == {0: 0.0, 1: 0.25, 2: 0.5}
    assert ranked({0: 0.1, 1: 0.5, 2: 0.5}) == [1, 2, 0]
