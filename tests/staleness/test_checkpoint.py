"""Snakemake over a checkpoint: what is made, when it is made again, what is refused."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import checkpoints
import converter
from checkout import ROOT, Checkout

EXPORT = {"export_checkpoint MFP4", "write_checkpoint_card MFP4"}
MODEL: dict[str, Any] = {
    "source": {"checkpoint": "a folder"},
    "recipes": [{"name": "MFP4", "template": "mfp4"}],
}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout, in a folder whose name has a space, with a checkpoint alone."""
    checkout = Checkout.build(tmp_path / "a checkout")
    checkpoints.write(checkout.folder / "a folder", shards=2)
    checkout.configure(lambda config: config.update(models={"small": MODEL}))
    return checkout


def file(checkout: Checkout, name: str) -> Path:
    """A file of the export, or its report."""
    return checkout.folder / "results" / "small" / "checkpoint" / f"small-MFP4{name}"


def flip(checkout: Checkout) -> None:
    """Another value in the last tensor of a shard."""
    path = checkout.folder / "a folder" / "model-00002-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def touch(checkout: Checkout) -> None:
    """The checkpoint's files as if of now."""
    now = time.time()
    for path in (checkout.folder / "a folder").iterdir():
        os.utime(path, (now, now))


def with_bench(checkout: Checkout) -> None:
    """Settings of what a checkpoint has no part in."""
    checkout.configure(lambda config: config.update(models={"small": MODEL}, imatrix=None, bench={}))


def compressed(checkout: Checkout) -> None:
    """Another form."""
    recipes = [MODEL["recipes"][0] | {"form": "compressed-tensors"}]
    checkout.configure(lambda config: config.update(models={"small": MODEL | {"recipes": recipes}}))


def second(checkout: Checkout) -> None:
    """A recipe more."""
    recipes = [*MODEL["recipes"], {"name": "again", "template": "mfp4"}]
    checkout.configure(lambda config: config.update(models={"small": MODEL | {"recipes": recipes}}))


def licensed(checkout: Checkout) -> None:
    """A card's field."""
    checkout.configure(lambda config: config.update(models={"small": MODEL | {"card": {"license": "mit"}}}))


CASES: dict[str, tuple[Callable[[Checkout], Any], set[str]]] = {
    "nothing": (lambda checkout: None, set()),
    "touched files": (touch, set()),
    "what has no part in it": (with_bench, set()),
    "another weight": (flip, EXPORT),
    "another tokenizer": (lambda h: h.edit("a folder/tokenizer_config.json", "{", "{ "), EXPORT),
    "a file more": (
        lambda h: (h.folder / "a folder" / "vocab.txt").write_text("a", encoding="utf-8"),
        EXPORT,
    ),
    "the version of the stage": (lambda h: h.raise_version("checkpoint.export"), EXPORT),
    "a deleted folder": (lambda h: shutil.rmtree(file(h, "")), EXPORT),
    "a deleted report": (lambda h: file(h, ".json").unlink(), EXPORT),
    "another form": (compressed, EXPORT),
    "a recipe more": (second, {"export_checkpoint again", "write_checkpoint_card again"}),
    "the licence on its card": (licensed, {"write_checkpoint_card MFP4"}),
}


def test_an_export_is_made_once_and_again_only_when_it_must(checkout: Checkout, tmp_path: Path) -> None:
    assert checkout.due() == EXPORT
    checkout.run()
    made = {path.name for path in file(checkout, "").iterdir()}
    source = {path.name for path in (checkout.folder / "a folder").iterdir()}
    assert made == source | {"hf_quant_config.json", "README.md"}
    assert "vllm serve ./small-MFP4" in file(checkout, "/README.md").read_text("utf-8")
    assert json.loads(file(checkout, ".json").read_text("utf-8"))["quant_algo"] == "W4A16_NVFP4"
    assert {path.name for path in file(checkout, "").parent.iterdir()} == {"small-MFP4", "small-MFP4.json"}
    for number, (case, (change, expected)) in enumerate(CASES.items()):
        copy = checkout.copy(tmp_path / f"copy {number}")
        change(copy)
        assert copy.due() == expected, case
        if case == "another weight":
            copy.run()
            assert copy.due() == set()


def test_beside_a_gguf_both_are_made(checkout: Checkout) -> None:
    checkout.configure(
        lambda config: (
            config["models"].update(small=MODEL)
            or config.update(imatrix=None, sensitivity=None, bench={}, recipes=["Q8_0"])
        )
    )
    due = checkout.due()
    assert due == EXPORT | {
        "check_source",
        "list_tensors",
        "plan_types Q8_0",
        "tabulate_memory",
        "quantize Q8_0",
        "check_file Q8_0",
        "write_lock",
        "write_card",
    }
    assert checkout.due("checkpoints") == EXPORT


def test_what_cannot_be_exported_is_refused_in_one_line(checkout: Checkout) -> None:
    (checkout.folder / "a folder" / "model-00001-of-00002.safetensors").unlink()
    refused = checkout.snakemake()
    assert refused.returncode == 1
    line = "error: a folder: no model-00001-of-00002.safetensors, named by model.safetensors.index.json"
    assert any(message.startswith(line) for message in refused.stderr.splitlines())
    assert not file(checkout, "").exists()
    (checkout.folder / "a folder" / "config.json").unlink()
    refused = checkout.snakemake()
    assert refused.stderr.splitlines()[-1] == (
        "error: config.yaml: models.small.source.checkpoint: no config.json in a folder; check the path"
    )


def test_the_example_is_what_the_tests_make_and_builds(checkout: Checkout, tmp_path: Path) -> None:
    example = ROOT / "examples" / "tiny-checkpoint"
    made = checkpoints.write(tmp_path / "made")
    assert {p.name: p.read_bytes() for p in example.iterdir()} == {
        p.name: p.read_bytes() for p in made.iterdir()
    }
    shutil.copytree(ROOT / "examples", checkout.folder / "examples")
    checkout.run("--configfile=examples/mfp4.yaml")
    assert (checkout.folder / "results" / "tiny-random" / "checkpoint" / "tiny-random-MFP4.json").is_file()


GGUF = {"source": {"checkpoint": "a folder"}, "recipes": ["Q8_0"]}
CONVERT = "convert_checkpoint"
HEADER = {"check_source", "list_tensors", "plan_types Q8_0", "tabulate_memory"}
REST = HEADER | {"quantize Q8_0", "check_file Q8_0", "write_lock", "write_card"}


@pytest.fixture
def converting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """A checkout with a checkpoint that is converted by a stand-in, and measured."""
    checkout = Checkout.build(tmp_path / "a checkout")
    checkpoints.write(checkout.folder / "a folder", shards=2)
    do = converter.COPY.format(gguf=str(checkout.folder / "tiny-llama.gguf"))
    monkeypatch.setenv("QUANTMILL_CONVERTER", str(converter.build(tmp_path / "an environment", do)))
    return checkout


def asks(checkout: Checkout, source: dict[str, Any] | None = None, recipes: list[Any] | None = None) -> None:
    """The config with the checkpoint as the one model."""
    model = {"source": GGUF["source"] | (source or {}), "recipes": recipes or GGUF["recipes"]}

    checkout.configure(
        lambda config: config.update(models={"small": model}, imatrix=None, sensitivity=None, bench={})
    )


def test_a_converted_checkpoint_is_a_source_like_any_other(converting: Checkout, tmp_path: Path) -> None:
    asks(converting)
    everything = {CONVERT} | REST
    assert converting.due() == everything
    converting.run()
    assert converting.due() == set()
    source = converting.folder / "results" / "small" / "source"
    assert json.loads((source / "small.gguf.json").read_text("utf-8"))["architectures"] == [
        "LlamaForCausalLM"
    ]
    assert (source / "small.gguf").is_file()
    card = (converting.folder / "results" / "small" / "card" / "README.md").read_text("utf-8")
    assert "`small.gguf` made of the checkpoint a folder by llama.cpp's own converter" in card
    cases: dict[str, tuple[Callable[[Checkout], Any], set[str]]] = {
        "touched files": (touch, set()),
        "another weight": (flip, everything),
        "another precision": (lambda h: asks(h, {"to": "bf16"}), everything),
        "exported as well": (lambda h: asks(h, None, ["Q8_0", *MODEL["recipes"]]), EXPORT),
    }
    for number, (case, (change, expected)) in enumerate(cases.items()):
        copy = converting.copy(tmp_path / f"copy {number}")
        change(copy)
        assert copy.due() == expected, case


def test_a_gguf_that_is_not_kept_comes_and_goes(converting: Checkout) -> None:
    asks(converting, {"keep": False})
    again = f"{CONVERT}_for_now"
    assert converting.due() == {again} | REST
    converting.run()
    results = converting.folder / "results" / "small"
    assert not (results / "source" / "small.gguf").exists() and converting.due() == set()
    # The card alone needs no source.
    converting.edit("config.yaml", "    recipes:", "    card: {license: mit}\n    recipes:")
    assert converting.due() == {"write_card"}
    # Whatever is asked of it later makes it, and all that comes of it, again.
    asks(converting, {"keep": False}, ["Q8_0", "Q4_0"])
    assert converting.due() == {again, *REST, *(job.replace("Q8_0", "Q4_0") for job in REST)}


def test_activations_are_calibrated_once_on_the_checkpoint_as_gguf(
    converting: Checkout, tmp_path: Path
) -> None:
    both = [MODEL["recipes"][0] | {"scheme": "W4A4"}, {"name": "other", "template": "mfp4"}]

    def ask(checkout: Checkout, chunks: int = 2, recipes: list[Any] = both) -> None:
        model = {"source": GGUF["source"], "recipes": recipes}
        imatrix = {"corpus": "calibration", "chunks": chunks, "context": 64}
        checkout.configure(
            lambda config: config.update(models={"small": model}, imatrix=imatrix, sensitivity=None, bench={})
        )

    ask(converting)
    seen = {CONVERT, "build_corpus calibration", "calibrate_activations"}
    other = {"export_checkpoint other", "write_checkpoint_card other"}
    assert converting.due() == seen | EXPORT | other
    converting.run()
    assert converting.due() == set()
    folder = converting.folder / "results" / "small"
    assert {path.name for path in folder.iterdir() if path.name not in ("logs", "benchmarks")} == {
        "activations.json",
        "checkpoint",
        "corpus",
        "source",
    }
    report = json.loads((folder / "checkpoint" / "small-MFP4.json").read_text("utf-8"))
    assert report["calibration"] == {"corpus": "calibration", "chunks": 2, "context": 64}
    card = (folder / "checkpoint" / "small-MFP4" / "README.md").read_text("utf-8")
    assert "activations" in card and "2 chunks of 64 tokens of calibration" in card
    other_card = (folder / "checkpoint" / "small-other" / "README.md").read_text("utf-8")
    assert "weights only" in other_card and "weights only" not in card
    cases: dict[str, tuple[Callable[[Checkout], Any], set[str]]] = {
        "more chunks": (lambda h: ask(h, 3), {"build_corpus calibration", "calibrate_activations"} | EXPORT),
        "deleted": (
            lambda h: (h.folder / "results/small/activations.json").unlink(),
            {"calibrate_activations"} | EXPORT,
        ),
        "weights only": (lambda h: ask(h, 2, both[1:]), set()),
        "another weight": (flip, seen | EXPORT | other),
    }
    for number, (case, (change, expected)) in enumerate(cases.items()):
        copy = converting.copy(tmp_path / f"copy {number}")
        change(copy)
        assert copy.due() == expected, case


def test_a_checkpoint_that_cannot_be_converted_is_one_line(
    converting: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks(converting)
    converting.edit("a folder/config.json", "LlamaForCausalLM", "NoSuchForCausalLM")
    failed = converting.snakemake()
    line = "error: a folder/config.json: the converter knows no architecture NoSuchForCausalLM"
    assert any(message.startswith(line) for message in failed.stderr.splitlines())
    monkeypatch.setenv("QUANTMILL_CONVERTER", "nowhere")
    failed = converting.snakemake()
    assert any(message.startswith("error: nowhere: no bin/python") for message in failed.stderr.splitlines())
    (converting.folder / "a folder" / "model-00001-of-00002.safetensors").unlink()
    failed = converting.snakemake()
    line = "error: a folder: no model-00001-of-00002.safetensors, named by model.safetensors.index.json"
    assert any(message.startswith(line) for message in failed.stderr.splitlines())
    assert not (converting.folder / "results" / "small" / "source" / "small.gguf").exists()
