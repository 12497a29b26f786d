"""Canonical specs."""

import hashlib
import json
import math
from pathlib import Path

import pytest

from quantmill import spec
from quantmill.errors import QuantmillError
from quantmill.stages import VERSIONS


def test_key_order_does_not_matter_and_values_do() -> None:
    assert (
        spec.canonical({"b": 1, "a": [1, 2]}) == spec.canonical({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'
    )
    swapped = spec.canonical({"x": 2, "y": 1})
    assert spec.canonical({"x": 1, "y": 2}) != swapped
    assert spec.digest({"x": 1, "y": 2}) != spec.digest({"y": 1, "x": 2})


def test_what_has_no_canonical_form_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        spec.canonical(math.nan)
    with pytest.raises(TypeError):
        spec.canonical({"path": Path("x")})


def test_digest_of_text_is_that_of_its_utf8() -> None:
    assert spec.digest("ä") == hashlib.sha256("ä".encode()).hexdigest()
    assert spec.digest([1]) == hashlib.sha256(b"[1]").hexdigest()


def test_make_holds_stage_version_config_and_origins() -> None:
    made = json.loads(spec.make("quantize.write", {"threads": None}, {"plan": "ab"}, engine="cd"))
    assert made == {
        "stage": "quantize.write",
        "version": VERSIONS["quantize.write"],
        "config": {"threads": None},
        "from": {"plan": "ab"},
        "engine": "cd",
    }


def test_a_long_spec_is_a_file_by_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "specs"
    short, long, other = (
        spec.make("card.write", {"about": text}, {}) for text in ("ü", "ü" * 29999, "u" * 150000)
    )
    assert spec.argument(short, folder) == short
    assert not folder.exists()
    assert spec.argument(long, folder) == f"@{spec.digest(long)}" != spec.argument(other, folder)
    for one in (short, long, other):
        assert spec.read_argument(spec.argument(one, folder), folder) == json.loads(one)
    # It is written again where it was deleted, and a damaged one is not taken.
    (folder / spec.digest(long)).unlink()
    argument = spec.argument(long, folder)
    (folder / spec.digest(long)).write_bytes(b"\xff")
    with pytest.raises(QuantmillError, match="no such spec, or not whole; delete it"):
        spec.read_argument(argument, folder)


@pytest.mark.parametrize("argument", ["", "x", "[]", "3", '{"a": 1}', "null"])
def test_what_is_no_spec_is_refused(argument: str, tmp_path: Path) -> None:
    with pytest.raises(QuantmillError, match="no canonical JSON"):
        spec.read_argument(argument, tmp_path)
