"""Finished files are looked at whole: their data, tokenizer, chat template, and an answer."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ik
import models
from checkout import Checkout
from quantmill import spec
from quantmill.files import write_json
from quantmill.formats import general, ggufio
from quantmill.formats.publication import Facts
from reports import complete

DATA = Path(__file__).parents[1] / "data"
LLAMA = DATA / "tiny-llama.gguf"
NAN = struct.pack("<e", float("nan"))


def checked(model: Path, folder: Path, engine: str = "mainline") -> dict[str, Any]:
    """The report of a file, by the stage."""
    write_json(folder / "facts.json", complete(Facts, {"file": "tiny-Q8_0.gguf", "sha256": "0"}))
    config = {} if engine == "mainline" else {"engine": engine}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "quantmill", "check.file"),
            *("--spec", spec.make("check.file", config, {}, engine="e"), "--model", model),
            *("--facts", folder / "facts.json", "--out", folder / "checks.json", "--threads", "2"),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "checks.json").read_text("utf-8"))
    for line in report["failures"]:
        assert f"warning: tiny-Q8_0.gguf: {line}" in done.stderr
    return dict(report)


def test_a_sound_file(tmp_path: Path) -> None:
    report = checked(LLAMA, tmp_path)
    assert report["failures"] == [] and report["tensors"] == 21 and report["bytes"] > 5_000_000
    assert report["tokenizer"] == "lossless" and report["template"] == {
        "system": "takes",
        "tools": "leaves out",
    }
    assert report["answer"]["prompt"] == 22 and 0 < report["answer"]["tokens"] <= 16
    assert report["answer"]["text"]


def test_a_broken_block_is_named_with_its_tensor(tmp_path: Path) -> None:
    broken = models.with_bytes(LLAMA, tmp_path / "m.gguf", "blk.1.ffn_up.weight", NAN, at=2 * 300)
    weights, answer = checked(broken, tmp_path)["failures"]
    assert weights == "1 of the 196,608 values of blk.1.ffn_up.weight are NaN or infinite, the first at 300"
    assert answer.startswith("it does not work: it computes logits that are not finite, after 22 tokens")


def test_a_broken_scale_of_a_quantized_type(tmp_path: Path) -> None:
    broken = models.with_bytes(
        DATA / "tiny-mtp-Q8_0.gguf", tmp_path / "m.gguf", "blk.0.ffn_down.weight", NAN, at=34 * 7
    )
    line = checked(broken, tmp_path)["failures"][0]
    assert line.endswith("of blk.0.ffn_down.weight are NaN or infinite, the first at 7")
    assert line.startswith("1 of the ") and " blocks of " in line


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{ raise_exception('not for you') }}", "its chat template cannot render a question: not for you"),
        (
            "{% if %}",
            "its chat template cannot render a question: Expected an expression, got "
            "'end of statement block'",
        ),
    ],
)
def test_a_broken_chat_template(template: str, line: str, tmp_path: Path) -> None:
    broken = models.with_values(LLAMA, tmp_path / "m.gguf", tokenizer__chat_template=template)
    report = checked(broken, tmp_path)
    assert report["failures"] == [line] and report["template"] is None
    assert report["answer"]["prompt"] < 22  # of the question as it stands


def test_recommended_sampling_is_read(tmp_path: Path) -> None:
    assert checked(LLAMA, tmp_path)["sampling"] == {}
    header = ggufio.read_header(LLAMA)
    values = {"general.sampling.temp": 0.7, "general.sampling.top_k": 20, "general.sampling.sequence": "kp"}
    head = ggufio.serialize(
        dict(header.kv) | general.encoded(values),
        [(one.name, one.type_id, one.shape) for one in header.tensors],
    )
    (tmp_path / "m.gguf").write_bytes(head + LLAMA.read_bytes()[header.tensors[0].offset :])
    assert checked(tmp_path / "m.gguf", tmp_path)["sampling"] == {"temp": 0.7, "top_k": 20, "sequence": "kp"}


def test_a_template_that_never_ends(tmp_path: Path) -> None:
    endless = "{% for a in range(9999999) %}{% for b in range(9999999) %}{% endfor %}{% endfor %}"
    broken = models.with_values(LLAMA, tmp_path / "m.gguf", tokenizer__chat_template=endless)
    (line,) = checked(broken, tmp_path)["failures"]
    assert line.startswith("its chat template cannot render a question: ")


def test_a_file_without_a_chat_template_is_asked_as_it_stands(tmp_path: Path) -> None:
    plain = models.with_values(LLAMA, tmp_path / "m.gguf", tokenizer__chat_template=None)
    report = checked(plain, tmp_path)
    assert report["failures"] == [] and report["template"] is None and report["answer"]["prompt"] < 22


@pytest.mark.parametrize("write", [models.write_bert, models.write_t5])
def test_what_predicts_no_token_is_evaluated_and_not_asked(write: Any, tmp_path: Path) -> None:
    report = checked(write(tmp_path / "m.gguf"), tmp_path)
    assert report["failures"] == [] and report["answer"] is None
    assert report["tried"] == "evaluated"


def test_a_file_that_does_not_load(tmp_path: Path) -> None:
    """A file of llama's architecture, of which llama.cpp misses a tensor."""
    renamed = models.renamed(LLAMA, tmp_path / "old.gguf", "blk.1.ffn_down.weight", "blk.1.ffn_d0wn.weight")
    (line,) = checked(renamed, tmp_path)["failures"]
    assert line.startswith("it does not work: llama.cpp cannot load it (")
    assert "'blk.1.ffn_down.weight' not found" in line and str(tmp_path) not in line


@ik.NEEDED
def test_a_file_that_ik_does_not_load(tmp_path: Path) -> None:
    renamed = models.renamed(LLAMA, tmp_path / "old.gguf", "blk.1.ffn_down.weight", "blk.1.ffn_d0wn.weight")
    (line,) = checked(renamed, tmp_path, "ik")["failures"]
    assert line.startswith("it does not work: ") and "blk.1.ffn_down.weight" in line


@ik.NEEDED
def test_the_data_of_a_file_of_ik(tmp_path: Path) -> None:
    report = checked(LLAMA, tmp_path, "ik")
    assert report["failures"] == [] and report["tried"] == "evaluated"
    broken = models.with_bytes(LLAMA, tmp_path / "m.gguf", "blk.1.ffn_up.weight", NAN)
    weights, evaluated = checked(broken, tmp_path, "ik")["failures"]
    assert "of blk.1.ffn_up.weight are NaN" in weights
    assert evaluated == "it does not work: ik_llama.cpp computes logits of it that are not finite"


def test_a_file_that_fails_is_on_the_card_and_ends_the_run_in_an_error(tmp_path: Path) -> None:
    checkout = Checkout.build(tmp_path / "checkout")
    source = checkout.folder / "tiny-llama.gguf"
    models.with_values(LLAMA, source, tokenizer__chat_template="{{ raise_exception('not for you') }}")
    lean = {"imatrix": None, "sensitivity": None, "bench": {}, "recipes": ["Q8_0", "Q4_0"]}
    checkout.configure(lambda config: config.update(lean))
    refused = checkout.snakemake()
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        "error: tiny-Q4_0.gguf: failed its check: its chat template cannot render a question: not for you "
        "(and 1 more file); change its recipe or the source, or leave it out"
    )
    card = checkout.result("card/README.md").read_text("utf-8")
    assert "**`Q8_0` failed its check:** its chat template cannot render a question: not for you" in card
    assert "| Checked | 2 of 2 failed |" in card
    assert checkout.due() == {"check_file Q8_0", "check_file Q4_0", "write_card"}
    again = checkout.snakemake()
    assert (again.returncode, again.stderr.splitlines()[-1]) == (1, refused.stderr.splitlines()[-1])
    # what does not need the files is no error
    assert checkout.snakemake("plans").returncode == 0
