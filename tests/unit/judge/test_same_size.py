"""The same-size comparison: bands, a table of published figures and its faults, another model's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantmill.card import write
from quantmill.errors import QuantmillError
from quantmill.files import write_json
from quantmill.formats.measurements import Divergence
from quantmill.formats.publication import Facts
from quantmill.judge import compare, same_size
from quantmill.judge.results import read
from quantmill.judge.same_size import Entry
from quantmill.judge.scores import HUMANEVAL, scores_of
from reports import complete

Tree = tuple[Path, dict[str, Any]]


def test_bands_are_half_an_octave_and_hold_the_best_of_each_side() -> None:
    ours = [Entry("a", 1500, None, 0.02), Entry("b", 1600, None, 0.01), Entry("c", 4000, None, 0.001)]
    theirs = [Entry("x", 1450, None, 0.03), Entry("y", 100, None, 0.9)]
    names = [
        (b.low, b.high, b.ours and b.ours.name, b.theirs and b.theirs.name)
        for b in same_size.bands(ours, theirs)
    ]
    assert names == [
        (pytest.approx(2896.3, abs=0.1), pytest.approx(4096.0), "c", None),
        (pytest.approx(1448.2, abs=0.1), pytest.approx(2048.0), "b", "x"),
        (pytest.approx(90.5, abs=0.1), pytest.approx(128.0), None, "y"),
    ]


def test_a_verdict_needs_an_interval_on_both_sides() -> None:
    ours = Entry("a", 100, compare.Score(0.8, 0.73, 0.85, ""), None)
    published = Entry("x", 100, compare.Score(0.5, 0.5, 0.5, "as published"), None)
    measured = Entry("x", 100, compare.Score(0.5, 0.42, 0.58, ""), None)
    assert [band.verdict for band in same_size.bands([ours], [published])] == [""]
    assert [band.verdict for band in same_size.bands([ours], [measured])] == ["better"]


def test_answers_with_line_separators_are_a_line_each(tmp_path: Path) -> None:
    answers = [{"answer": "x = 'a\u2028b\x85c'", "passed": True}, {"answer": "y", "passed": False}]
    path = tmp_path / "humaneval.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers), encoding="utf-8")
    measured = {"interval": [0.1, 0.9], "passed": 1, "problems": 2, "pass_at_1": 0.5}
    assert scores_of(measured, None, path)[HUMANEVAL].passes == (True, False)


def test_a_table_of_published_figures_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("file,gb,humaneval,kld\nIQ4_XS,12.5,0.61,\nQ8_0,27,,0.002\n", encoding="utf-8")
    one, two = same_size.read_csv(path)
    path.write_bytes(path.read_text("utf-8").encode("utf-16"))  # as a spreadsheet saves "Unicode text"
    assert same_size.read_csv(path) == [one, two]
    assert (one.name, one.bytes, one.kld) == ("IQ4_XS", 12_500_000_000, None)
    assert one.score is not None and one.score.value == 0.61
    assert (two.score, two.kld) == (None, 0.002)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,gb,ppl\na,1,9\n", r"x\.csv: line 1: unknown column ppl; known are file, bytes, gib, gb"),
        ("file,gb,kld,\na,1,9,\n", r"line 1: unknown column \(no name\)"),
        ("file,kld\na,1\n", r"line 1: the columns are file, kld; it needs file, one of bytes, gib and gb"),
        ("file,gb,gib,kld\na,1,1,1\n", r"it needs file, one of"),
        ("file,gb\na,1\n", r"and humaneval or kld"),
        ("file,gb,kld\na,1\n", r"line 2: not 3 columns"),
        ("file,gb,kld\na,big,1\n", r"line 2: gb is 'big'; give a number"),
        ("file,gb,kld\na,,1\n", r"line 2: gb is missing"),
        ("file,gb,kld\na,1,nan\n", r"line 2: kld is 'nan'"),
        ("file,gb,humaneval\na,1,62\n", r"line 2: humaneval is 62; give a share"),
        ("file,gb,kld\n", r"x\.csv: no rows"),
        ("", r"the columns are none"),
    ],
)
def test_a_broken_table_is_refused_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QuantmillError, match=message):
        same_size.read_competitor(path)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantmillError, match=r"no results of a model; name the folder results/<model>"):
        same_size.read_competitor(tmp_path)


def test_the_card_has_a_table_for_each_model(kld_tree: Tree, tmp_path: Path) -> None:
    folder, config = kld_tree
    other = tmp_path / "results" / "other"
    write_json(other / "gguf" / "other-Q4_K_M.json", complete(Facts, {"file": "x.gguf", "bytes": 9 << 20}))
    write_json(other / "bench" / "Q4_K_M" / "kld.json", complete(Divergence, {"kld": {"mean": 0.125}}))
    csv = tmp_path / "x.csv"
    csv.write_text("file,bytes,humaneval\nQ5,10000000,0.5\n", encoding="utf-8")
    models = [{"name": "Other"}, {"name": "Published", "source": "their card of May"}]
    config["card"]["iso_disk"] = models
    card = write.render(
        read(folder, config), config, competitors=[same_size.read_competitor(p) for p in (other, csv)]
    )
    first, second = card.split("## Same-size comparison: ")[1:]
    assert "| 8.0 MiB to 11.3 MiB | `Q5_K_M`, 10.3 MiB | 0.01500 | `Q4_K_M`, 9.0 MiB | 0.125 |" in first
    assert "Figures of Published: their card of May, not measured here." in second
    assert "within each band of sizes.\n\n| Size |" in first and "not measured here.\n\n| Size |" in second
    assert "| 8.0 MiB to 11.3 MiB | `Q5_K_M`, 10.3 MiB | `Q5`, 9.5 MiB |" in second
