"""As in test_staleness, with an importance matrix that somebody published."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT, Checkout

Change = Callable[[Checkout], None]
FILE = "published.dat"
FILES = {"quantize Q8_0", "check_file Q8_0", "quantize mix", "check_file mix", "write_lock", "write_card"}
PLANS = {"plan_types Q8_0", "plan_types mix", "tabulate_memory"}


def settled(config: dict[str, Any]) -> None:
    """Two recipes, and nothing measured: the imatrix is all that is new here."""
    config["imatrix"] = {"file": FILE}
    config["bench"] = {}
    for field in ("sensitivity", "corpora"):
        del config[field]


def changed(old: bytes, new: bytes) -> Change:
    """Other bytes of the file, as many."""

    def change(checkout: Checkout) -> None:
        path = checkout.folder / FILE
        data = path.read_bytes()
        assert data.count(old) == 1 and len(old) == len(new)
        path.write_bytes(data.replace(old, new))

    return change


def scaled(checkout: Checkout) -> None:
    """Another value in the last entry of the file, before its chunks and its dataset."""
    path = checkout.folder / FILE
    data = bytearray(path.read_bytes())
    data[-17:-16] = bytes([data[-17] ^ 1])
    path.write_bytes(data)


def renamed(checkout: Checkout) -> None:
    (checkout.folder / FILE).rename(checkout.folder / "other.imatrix")
    checkout.configure(lambda config: (settled(config), config["imatrix"].update(file="other.imatrix")))


CASES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (lambda checkout: None, set()),
    "a touched file": (lambda checkout: os.utime(checkout.folder / FILE), set()),
    "other values": (scaled, {"import_imatrix"} | FILES),
    # what the files' headers say of it
    "another dataset": (changed(b"text.txt", b"test.txt"), {"import_imatrix"} | PLANS | FILES),
    "another name": (renamed, {"import_imatrix"} | PLANS | FILES),
    "a deleted report": (lambda h: h.result("imatrix.json").unlink(), {"import_imatrix"} | FILES),
    "its version": (
        lambda h: h.raise_version("imatrix.imported"),
        {"import_imatrix"} | FILES,
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with everything built."""
    checkout = Checkout.build(tmp_path_factory.mktemp("built") / "checkout")
    data = (ROOT / "tests" / "data" / "llama-imatrix-llama.dat").read_bytes()
    (checkout.folder / FILE).write_bytes(data)
    checkout.configure(settled)
    due = checkout.due()
    assert due > {"import_imatrix"} | PLANS | FILES and "measure_imatrix" not in due
    checkout.run()
    return checkout


@pytest.mark.parametrize("case", CASES)
def test_exactly_these_jobs_are_due(built: Checkout, tmp_path: Path, case: str) -> None:
    change, expected = CASES[case]
    assert built.due_after(change, tmp_path / "checkout") == expected


def test_it_is_on_the_card_and_in_the_files(built: Checkout) -> None:
    card = built.result("card/README.md").read_text("utf-8")
    assert f"Not measured here: it was given as the file `{FILE}` (sha256 `" in card
    assert "The file says that it was made from 12 chunks of `text.txt`." in card
    header = built.result("gguf/tiny-mix.gguf").read_bytes()[:400_000]
    assert b"quantize.imatrix.file" in header and FILE.encode() in header and b"text.txt" in header


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"x" * 99, "published.dat: is no importance matrix"),
        (None, "imatrix.file: no such file: published.dat"),
    ],
)
def test_what_is_no_imatrix_ends_the_run_before_it_begins(
    built: Checkout, tmp_path: Path, data: bytes | None, said: str
) -> None:
    checkout = built.copy(tmp_path / "checkout")
    path = checkout.folder / FILE
    path.unlink() if data is None else path.write_bytes(data)
    done = checkout.snakemake("-n")
    assert done.returncode == 1
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0]
