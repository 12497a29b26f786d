"""The source's tensors as a table."""

from pathlib import Path

import pytest

from quantmill.errors import QuantmillError
from quantmill.formats.manifest import ManifestRow, read_manifest_rows, write_manifest


def test_a_row_has_four_extents(tmp_path: Path) -> None:
    path = tmp_path / "manifest.tsv"
    write_manifest(path, [ManifestRow("blk.3.ffn_up.weight", "ffn_up", 3, (64, 32), "f16", 4096, "ab")])
    assert path.read_text("utf-8").splitlines() == [
        "name\trole\tlayer\tne0\tne1\tne2\tne3\ttype\tbytes\tsha256",
        "blk.3.ffn_up.weight\tffn_up\t3\t64\t32\t1\t1\tf16\t4096\tab",
    ]
    (row,) = read_manifest_rows(path)
    assert row == ("blk.3.ffn_up.weight", "ffn_up", 3, (64, 32, 1, 1), "f16", 4096, "ab")


@pytest.mark.parametrize("text", ["name\trole\na\tb\n", "", "name\tlayer\na\tb\n"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(QuantmillError, match="delete it to have it made again"):
        read_manifest_rows(tmp_path / "manifest.tsv")
