"""Results that cannot be read: a measurement of another file, a missing file, a broken one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantmill.errors import QuantmillError
from quantmill.files import read_json, write_json
from quantmill.judge.results import read

Tree = tuple[Path, dict[str, Any]]


def edit(path: Path, **fields: Any) -> None:
    write_json(path, read_json(path) | fields)


def test_a_measurement_of_another_file_is_refused(tree: Tree) -> None:
    folder, config = tree
    edit(folder / "bench" / "Q8_0" / "speed.json", model_sha256="0" * 64)
    with pytest.raises(QuantmillError, match=r"Q8_0/speed\.json: measured on another file; delete it"):
        read(folder, config)


@pytest.mark.parametrize(
    "missing",
    [
        "model.json",
        "manifest.tsv",
        "plans/Q6_K.tsv",
        "plans/Q6_K.json",
        "recipes/Q6_K.yaml",
        "gguf/tiny-Q6_K.json",
        "bench/Q6_K/perplexity.json",
        "bench/Q6_K/kld.json",
        "imatrix.json",
        "corpus/held-out.json",
    ],
)
def test_a_missing_file_is_named(kld_tree: Tree, missing: str) -> None:
    folder, config = kld_tree
    (folder / missing).unlink()
    with pytest.raises(QuantmillError, match=rf"{missing.rsplit('/', 1)[-1]}: no such file"):
        read(folder, config)


def test_a_broken_file_is_named(tree: Tree) -> None:
    folder, config = tree
    (folder / "imatrix.json").write_text('{"corpus": ', encoding="utf-8")
    with pytest.raises(QuantmillError, match=r"imatrix\.json: no valid JSON"):
        read(folder, config)
