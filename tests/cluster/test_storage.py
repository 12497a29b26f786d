"""A run whose files go through a storage plugin: the one for file systems, as profiles/kubernetes has it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from checkout import Checkout

pytest.importorskip("snakemake_storage_plugin_fs", reason="make cluster installs the plugin")
pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="the plugin needs rsync")


def small(config: dict[str, Any]) -> None:
    """Two files, their divergences, one sensitivity."""
    config["bench"] = {"kld": config["bench"]["kld"]}


def test_every_file_is_in_the_storage(tmp_path: Path) -> None:
    checkout, storage = Checkout.build(tmp_path / "checkout"), tmp_path / "storage"
    checkout.configure(small)
    storage.mkdir()
    for given in (
        checkout.folder / name for name in ("tiny-llama.gguf", "one.txt", "two.txt", "three.txt", "four.txt")
    ):
        shutil.copy2(given, storage)
    there = ["--default-storage-provider=fs", f"--default-storage-prefix={storage}"]
    there += ["--shared-fs-usage", "persistence", "sources", "source-cache", "software-deployment"]
    command = [sys.executable, "-m", "snakemake", "--cores=1", *there]
    done = subprocess.run(command, cwd=checkout.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = {str(path.relative_to(storage)) for path in storage.rglob("*") if path.is_file()}
    for name in ("gguf/tiny-Q8_0.gguf", "imatrix.gguf", "sensitivity.tsv", "card/README.md", "lock.json"):
        assert f"results/tiny/{name}" in results
    # Nothing but the store, whose place is the user's own, and specs lies here.
    here = {path.relative_to(checkout.folder).parts[:2] for path in (checkout.folder / "results").rglob("*")}
    assert here - {("results",)} <= {("results", ".store"), ("results", ".specs")}
    alone = checkout.copy(tmp_path / "alone")
    alone.run("quants")
    for file in alone.result("gguf").glob("*.gguf"):
        assert file.read_bytes() == (storage / "results" / "tiny" / "gguf" / file.name).read_bytes()
