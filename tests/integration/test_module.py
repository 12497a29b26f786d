"""The workflow as a module of another one, which has rules and a config of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkout import ROOT, Checkout

SNAKEFILE = """
rule all:
    input:
        "own.txt",
        "made/tiny/plans/Q8_0.tsv",


rule own:
    output:
        "own.txt",
    shell:
        "echo first > {output}; echo second >> {output}"


module quantmill:
    snakefile:
        "checkout/workflow/Snakefile"
    config:
        config["quantmill"]


use rule * from quantmill as quantmill_*


onsuccess:
    print("what the other workflow says at its end")
"""
CONFIG = """
for the other workflow: 1
quantmill:
  models: {tiny: {source: {path: tiny-llama.gguf}}}
  recipes: [Q8_0]
  results: made
"""


@pytest.fixture
def other(tmp_path: Path) -> Checkout:
    """A workflow that takes this one from a folder."""
    Checkout.build(tmp_path / "checkout")
    (tmp_path / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    (tmp_path / "own.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "tiny-llama.gguf").write_bytes((ROOT / "tests" / "data" / "tiny-llama.gguf").read_bytes())
    return Checkout(tmp_path)


def test_rules_of_both_are_run_each_in_its_own_way(other: Checkout) -> None:
    arguments = ("--configfile=own.yaml",)
    assert other.due(*arguments) == {"quantmill_plan_types Q8_0"}
    done = other.run(*arguments)
    # A command of several parts: nothing replaces or watches the shell of another workflow's rules.
    assert (other.folder / "own.txt").read_text("utf-8") == "first\nsecond\n"
    assert json.loads((other.folder / "made/tiny/plans/Q8_0.json").read_text("utf-8"))["recipe"] == "Q8_0"
    assert "what the other workflow says at its end" in done.stdout + done.stderr
    assert "Nothing to be done" in other.run("-n", *arguments).stdout


def test_bad_input_is_one_line_there_too(other: Checkout) -> None:
    config = other.folder / "own.yaml"
    config.write_text(config.read_text("utf-8").replace("[Q8_0]", "[]"), encoding="utf-8")
    done = other.snakemake("-n", "--configfile=own.yaml")
    assert done.returncode == 1
    assert "error: own.yaml: recipes: is empty; give at least one" in done.stderr
    assert "Traceback" not in done.stderr
