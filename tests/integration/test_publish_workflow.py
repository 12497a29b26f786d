"""`snakemake publish` over a tiny model and a hub on loopback; a source that is fetched from that hub."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT, Checkout
from hub import TOKEN, Hub, serving

LEAN: dict[str, Any] = {"imatrix": None, "sensitivity": None, "bench": {}, "recipes": ["Q8_0"]}
FILES = {
    "README.md",
    "SHA256SUMS",
    "lock.json",
    "tiny-Q8_0.gguf.derivation.json",
    "plans/Q8_0.tsv",
    "plots/bits.svg",
    "recipes/Q8_0.yaml",
    "tiny-Q8_0.gguf",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client takes for the real one, with a token for it."""
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_a_fetched_source_is_quantized_and_published(tmp_path: Path, hub: Hub) -> None:
    source = (ROOT / "tests" / "data" / "tiny-llama.gguf").read_bytes()
    hub.put("you/original", "q/x.gguf", source)
    hub.cuts["q/x.gguf"] = 1
    checkout = Checkout.build(tmp_path / "a checkout")
    model = {"source": {"hf": "you/original", "file": "q/x.gguf", "revision": "0" * 40}}
    publish = {"repo": "me/{model}-GGUF"}
    checkout.configure(lambda config: config.update(LEAN, models={"tiny": model}, publish=publish))
    shown = checkout.run("publish").stdout
    assert (
        hashlib.sha256(checkout.result("source/q/x.gguf").read_bytes()).digest()
        == hashlib.sha256(source).digest()
    )
    assert "tiny -> me/tiny-GGUF (main, to be made): " in shown
    assert hashlib.sha256(checkout.result("gguf/tiny-Q8_0.gguf").read_bytes()).hexdigest() in shown
    assert "nothing was uploaded; to upload: add --config confirm=yes" in shown
    assert "me/tiny-GGUF" not in hub.repositories

    checkout.run("publish", "--config", "confirm=yes")
    assert set(hub.repositories["me/tiny-GGUF"]) >= FILES
    assert "publish" not in checkout.run("-n").stdout
    assert "nothing differs" in checkout.run("publish", "--config", "confirm=yes").stdout
    assert len(hub.sent) == 1

    publish["split"] = "2 MB"
    checkout.configure(lambda config: config.update(LEAN, models={"tiny": model}, publish=publish))
    checkout.run("publish", "--config", "confirm=yes")
    held = hub.repositories["me/tiny-GGUF"]
    parts = {path for path in held if path.startswith("tiny-Q8_0/") and path.endswith(".gguf")}
    assert len(parts) == 2
    card = held["README.md"].decode()
    for path in parts:  # under the very names that the card gives
        assert f"`{path}`" in card
        assert f"{hashlib.sha256(held[path]).hexdigest()}  {path}" in card
        statement = json.loads(held[f"{path}.derivation.json"])
        assert statement["subject"][0]["digest"]["sha256"] == hashlib.sha256(held[path]).hexdigest()
        base = statement["predicate"]["baseModel"]
        assert base["uri"] == f"pkg:huggingface/you/original@{'0' * 40}"
        assert base["digest"]["sha256"] == hashlib.sha256(source).hexdigest()


def test_what_publishing_refuses_before_any_work(tmp_path: Path) -> None:
    checkout = Checkout.build(tmp_path / "checkout")
    checkout.configure(lambda config: config.update(LEAN))
    refused = checkout.snakemake("publish")
    assert refused.returncode == 1
    line = 'no repository to publish in; add publish: {repo: "organisation/{model}-GGUF"}'
    assert refused.stderr.splitlines()[-1] == f"error: config.yaml: {line}"
    # said once, on the command line: a file that says it would upload at every look
    checkout.configure(lambda config: config.update(LEAN, confirm=True))
    assert "error: config.yaml: confirm: unknown field" in checkout.snakemake("-n").stderr
