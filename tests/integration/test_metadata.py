"""Metadata of finished files are repaired by a run that neither quantizes nor evaluates."""

from __future__ import annotations

from pathlib import Path

from checkout import Checkout
from quantmill.files import read_json
from quantmill.formats.ggufio import read_header

LEAN = {
    "imatrix": None,
    "sensitivity": None,
    "recipes": ["Q8_0"],
    "bench": {"kld": {"corpus": "held-out", "chunks": 3, "context": 128}},
}


def test_a_name_is_repaired_and_what_was_measured_stays(tmp_path: Path) -> None:
    checkout = Checkout.build(tmp_path / "checkout")
    checkout.configure(lambda config: config.update(LEAN))
    checkout.run()
    file, report = checkout.result("gguf/tiny-Q8_0.gguf"), checkout.result("bench/Q8_0/kld.json")
    before, measured = read_header(file), read_json(report)
    checkout.configure(lambda config: config.update(LEAN, metadata={"name": "A better name"}))
    checkout.run("retag")
    assert "; 0 units made, " in checkout.result("logs/gguf/Q8_0.log").read_text("utf-8")
    after = read_header(file)
    assert after.text("general.name") == "A better name" and after.text("general.license") == "mit"
    assert after.text("quantize.recipe") == "Q8_0"
    assert [t[:5] for t in after.tensors] == [t[:5] for t in before.tensors]
    checkout.run()
    facts = read_json(checkout.result("gguf/tiny-Q8_0.json"))
    assert read_json(report) | {"seconds": 0} == measured | {"seconds": 0}
    assert measured["model_sha256"] == facts["measured_as"] != facts["sha256"]
    assert facts["sha256"][:8] in checkout.result("card/README.md").read_text("utf-8")
    assert checkout.due() == set()
