"""What a reader of a report checks, and that docs/files.md is made of the types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantmill.errors import QuantmillError
from quantmill.formats import docs, publication, source
from quantmill.formats.allocation import SENSITIVITY
from quantmill.formats.report import fault

CHECK: dict[str, Any] = {"kind": "decoder", "words": "a decoder", "warnings": []}
FACTS: dict[str, Any] = {"file": "a.gguf", "bytes": 1, "sha256": "0", "tensors": 2}


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    source.CHECK.write(tmp_path / "check.json", CHECK)  # type: ignore[arg-type]
    assert source.CHECK.read(tmp_path / "check.json") == CHECK


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": 3}, "kind is 3, not of type str"),
        ({"warnings": ["a", None]}, "warnings[1] is None, not of type str"),
        ({"warnings": "a"}, "warnings is 'a', not a list"),
        ({"more": 1}, "unknown field more"),
    ],
)
def test_a_report_of_another_form_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "check.json", CHECK | change)
    with pytest.raises(QuantmillError) as error:
        source.CHECK.read(path)
    assert str(error.value) == f"{path}: {message}; delete it to have it made again"


def test_a_field_that_is_missing_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {key: value for key, value in FACTS.items() if key != "sha256"})
    with pytest.raises(QuantmillError, match="no field sha256"):
        publication.FACTS.read(path)


def test_a_field_that_may_be_absent_may_be_there(tmp_path: Path) -> None:
    part = {"file": "a", "bytes": 1, "sha256": "0"}
    for facts in (FACTS, FACTS | {"engine": "ik", "parts": [part]}):
        assert publication.FACTS.read(written(tmp_path / "a.json", facts)) == facts
    assert "parts[0].bytes is '1'" in fault(FACTS | {"parts": [part | {"bytes": "1"}]}, publication.Facts)


def test_an_integer_is_a_number_and_a_truth_value_is_none() -> None:
    assert fault(3, float) == ""
    assert fault(True, int) == "it is True, not of type int"
    assert fault(3.5, int) == "it is 3.5, not of type int"
    assert fault(None, float | None) == ""


def test_a_report_of_two_forms_may_be_either(tmp_path: Path) -> None:
    imported = {
        "how": "imported",
        "import": "a.csv",
        "curve": "b.csv",
        "tensors": 1,
        "types": ["q4_K"],
        "measured_at": ["q4_K"],
        "warnings": [],
    }
    assert SENSITIVITY.read(written(tmp_path / "s.json", imported)) == imported
    with pytest.raises(QuantmillError, match="no field choices"):
        SENSITIVITY.read(written(tmp_path / "s.json", {**imported, "how": 1}))


def test_a_stage_that_writes_another_form_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no field kind"):
        source.CHECK.write(tmp_path / "check.json", {})  # type: ignore[typeddict-item]
    assert not (tmp_path / "check.json").exists()


def test_the_page_is_made_of_the_types() -> None:
    page = Path(__file__).parents[3] / "docs" / "files.md"
    assert page.read_text("utf-8") == docs.page(), "run: python -m quantmill.formats > docs/files.md"


def test_every_report_is_of_a_stage() -> None:
    from quantmill.stages import STAGES

    assert {report.stage for report in docs.REPORTS} <= STAGES.keys()
