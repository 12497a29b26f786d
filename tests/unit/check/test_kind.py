"""What kind of model a GGUF holds, what its kind cannot be asked for, what a source's check says."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from quantmill.check import kind, source, trial
from quantmill.check.file import how_tried
from quantmill.check.kind import Evaluation, kind_of, refuse
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import ARRAY, Header, Tensor, Value, encode_string, encode_u32
from quantmill.model.header import hyperparameters, not_finite

DATA = Path(__file__).parents[2] / "data"
FALSE: Value = (7, b"\0")
INFINITE: Value = (6, struct.pack("<f", float("inf")))
NAN_IN_LIST: Value = (ARRAY, struct.pack("<IQ2f", 6, 2, 1.0, float("nan")))


def header(arch: str = "llama", positions: int | None = None, **kv: Value) -> Header:
    """A header of one tensor; keyword names stand for keys, `__` for a dot."""
    named = {key.replace("__", "."): value for key, value in kv.items()}
    listed = [Tensor("token_embd.weight", "f16", 1, (64, 32), 4096, 0, 0)]
    if positions:
        listed.append(Tensor("position_embd.weight", "f32", 0, (64, positions), 256 * positions, 0, 4096))
    path = Path("m.gguf")
    return Header(path, (path,), tuple(listed), {"general.architecture": encode_string(arch)} | named)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (header(), "decoder"),
        (header("qwen35moe"), "decoder"),
        (header(llama__pooling_type=encode_u32(0)), "decoder"),
        (header("bert", bert__attention__causal=FALSE), "encoder"),
        (header(llama__attention__causal=FALSE), "encoder"),
        (header("qwen3", qwen3__pooling_type=encode_u32(3)), "encoder"),
        (header("bert", bert__pooling_type=encode_u32(4)), "reranker"),
        (header("llada"), "diffusion"),
        (header("t5"), "encoder-decoder"),
        (header("t5encoder"), "text-encoder"),
        (header("eagle3"), "draft"),
        (header("clip", general__type=encode_string("mmproj")), "projector"),
        (header(general__type=encode_string("adapter")), "adapter"),
        (header("", general__type=encode_string("imatrix")), "imatrix"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.architecture,
)
def test_the_kind_is_told_from_the_metadata(made: Header, name: str) -> None:
    assert kind_of(made).name == name


def test_only_language_models_are_measured_by_the_next_token() -> None:
    assert {name for name, each in kind.KINDS.items() if each.predicts} == {"decoder"}
    assert all(each.why or each.refused or each.predicts for each in kind.KINDS.values())


@pytest.mark.parametrize(
    ("made", "engine", "how"),
    [
        (header(tokenizer__ggml__model=encode_string("gpt2")), "mainline", "asked"),
        (header(), "mainline", "evaluated"),
        (header(tokenizer__ggml__model=encode_string("gpt2")), "ik", "evaluated"),
        (header("bert"), "mainline", "evaluated"),
        (header("bert"), "ik", "loaded"),
        (header("eagle3"), "mainline", "loaded"),
        (header("clip"), "mainline", "read"),
        (header(llama__block_count=encode_u32(3), llama__nextn_predict_layers=encode_u32(1)), "ik", "read"),
    ],
)
def test_how_far_a_finished_file_can_be_tried(made: Header, engine: str, how: str) -> None:
    assert how_tried(made, engine) == how


KLD, IMATRIX = Evaluation("bench.kld", "bench.kld", 512), Evaluation("imatrix", "models.m.imatrix", 512)


@pytest.mark.parametrize(
    ("made", "requested", "line"),
    [
        (
            header("bert"),
            [IMATRIX, KLD, Evaluation("bench.speed", "bench.speed")],
            "c.yaml: bench.kld: m is an embedding model (architecture bert): it predicts no next token; "
            "leave bench.kld and bench.speed out for it (models: {m: {bench: {}}}); "
            "bench.embeddings is the measure that fits it",
        ),
        (
            header(),
            [Evaluation("bench.embeddings", "bench.embeddings", 128)],
            "c.yaml: bench.embeddings: m is a language model (architecture llama): it gives no embedding of "
            "a text; leave bench.embeddings out for it (models: {m: {bench: {}}})",
        ),
        (
            header(),
            [Evaluation("bench.projector", "bench.projector")],
            "c.yaml: bench.projector: m is a language model (architecture llama): it reads no pictures; "
            "leave bench.projector out for it (models: {m: {bench: {}}})",
        ),
        (
            header(),
            [Evaluation("bench.draft", "models.m.bench.draft", 128)],
            "c.yaml: models.m.bench.draft: m: has no layer of multi-token prediction; leave out "
            "`bench.draft` for it",
        ),
        (
            header(),
            [Evaluation("bench.served.draft", "bench.served.draft")],
            "c.yaml: bench.served.draft: m: has no layer of multi-token prediction; leave out "
            "`bench.served.draft` for it",
        ),
        (
            header("newest", newest__block_count=encode_u32(3), newest__nextn_predict_layers=encode_u32(1)),
            [Evaluation("bench.draft", "bench.draft", 128)],
            "c.yaml: bench.draft: m: the engine does not know a head for multi-token prediction of newest; "
            "leave out `bench.draft` for it",
        ),
        (
            header("clip", general__type=encode_string("mmproj")),
            [KLD],
            "c.yaml: bench.kld: m is a multimodal projector (architecture clip): it only works beside a "
            "language model; leave bench.kld out for it (models: {m: {bench: {}}}); "
            "bench.projector is the measure that fits it",
        ),
        (
            header("t5"),
            [IMATRIX, KLD],
            "c.yaml: models.m.imatrix: m is an encoder-decoder model (architecture t5): quantmill evaluates "
            "none; leave imatrix and bench.kld out for it (models: {m: {imatrix: null, bench: {}}})",
        ),
        (
            header("t5"),
            [Evaluation("moments", "moments", 512)],
            "c.yaml: moments: m is an encoder-decoder model (architecture t5): quantmill evaluates none; "
            "leave moments out for it (models: {m: {moments: null}}), and give its recipes rounding: nearest",
        ),
        (
            header(tokenizer__ggml__model=encode_string("none")),
            [Evaluation("moments", "moments", 512)],
            "c.yaml: moments: m has no tokenizer, so that no text can be cut to tokens; "
            "leave it out, or take a file of the model that has one",
        ),
        (
            header(general__type=encode_string("adapter")),
            [],
            "c.yaml: models.m.source: m is a LoRA adapter (architecture llama); merge it into its model "
            "(llama-export-lora) and take that as the source",
        ),
        (
            header(tokenizer__ggml__model=encode_string("none")),
            [IMATRIX],
            "c.yaml: models.m.imatrix: m has no tokenizer, so that no text can be cut to tokens; "
            "leave it out, or take a file of the model that has one",
        ),
        (
            header("gpt2", positions=256),
            [KLD],
            "c.yaml: bench.kld: 512 tokens, and m has 256 positions; give 256 or fewer",
        ),
    ],
)
def test_what_a_kind_cannot_have_is_refused_in_one_line(
    made: Header, requested: list[Evaluation], line: str
) -> None:
    with pytest.raises(QuantmillError) as raised:
        refuse(made, "m", requested, "c.yaml")
    assert str(raised.value) == line


def test_an_encoder_and_a_reranker_have_their_own_measure_and_a_sensitivity() -> None:
    requested = [Evaluation(field, field, 128) for field in ("bench.embeddings", "sensitivity", "imatrix")]
    for made in (header("bert"), header("qwen3", qwen3__pooling_type=encode_u32(4))):
        refuse(made, "m", requested, "c.yaml")


def test_a_projector_is_measured_on_pictures_and_has_no_sensitivity() -> None:
    made = header("clip", general__type=encode_string("mmproj"))
    refuse(made, "m", [Evaluation("bench.projector", "bench.projector")], "c.yaml")
    for field in ("sensitivity", "imatrix", "bench.embeddings"):
        with pytest.raises(QuantmillError, match=r"bench\.projector is the measure that fits it"):
            refuse(made, "m", [Evaluation(field, field, 128)], "c.yaml")


@pytest.mark.parametrize(
    ("pooling", "name"), [(None, "mean"), (0, "mean"), (1, "mean"), (2, "cls"), (3, "last"), (4, "rank")]
)
def test_the_pooling_is_the_metadatas(pooling: int | None, name: str) -> None:
    known = {} if pooling is None else {"bert__pooling_type": encode_u32(pooling)}
    assert kind.pooling_of(header("bert", **known)) == name


@pytest.mark.parametrize("made", [header("bert", positions=512), header(), header("gpt2", positions=512)])
def test_what_it_can_have_is_not(made: Header) -> None:
    refuse(made, "m", [IMATRIX, Evaluation("moments", "moments", 512)], "c.yaml")


def test_a_file_that_is_not_there_yet_is_left_to_its_check(tmp_path: Path) -> None:
    assert not kind.refuse_early(tmp_path / "m.gguf", "m", [], "c.yaml")
    assert kind.refuse_early(DATA / "tiny-llama.gguf", "m", [KLD], "c.yaml")
    with pytest.raises(QuantmillError, match="an importance matrix and no model"):
        kind.refuse_early(DATA / "llama-imatrix-llama.gguf", "m", [], "c.yaml")


def test_metadata_that_are_no_numbers_are_named_and_left_out_of_the_facts() -> None:
    made = header(llama__clamp=INFINITE, llama__factors=NAN_IN_LIST, llama__block_count=encode_u32(2))
    assert not_finite(made) == {"llama.clamp": "infinite", "llama.factors": "NaN"}
    assert json.dumps(hyperparameters(made), allow_nan=False) == '{"block_count": 2}'


def test_llama_cpps_warnings_are_said_once_and_without_their_frames() -> None:
    lines = [
        "load: missing pre-tokenizer type, using: 'default'",
        "load:",
        "load: ************************************",
        "load: GENERATION QUALITY WILL BE DEGRADED!",
        "load: CONSIDER REGENERATING THE MODEL",
        "load: control-looking token:  12 '<x>' was not control",
        "load: control-looking token: 345 '<y>' was not control",
    ]
    assert trial.warnings(lines) == [
        "missing pre-tokenizer type, using: 'default'. GENERATION QUALITY WILL BE DEGRADED! "
        "CONSIDER REGENERATING THE MODEL",
        "control-looking token: 12 '<x>' was not control (and 1 more like it)",
    ]


def test_a_source_that_llama_cpp_does_not_load_is_refused_with_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(path: Path) -> list[str]:
        raise QuantmillError("llama.cpp cannot load it (tensor 'x' not found)")

    monkeypatch.setattr(trial, "header", fails)
    with pytest.raises(
        QuantmillError, match=r"llama\.gguf: llama\.cpp cannot load it \(tensor 'x'.*; convert"
    ):
        source.check(DATA / "tiny-llama.gguf", "m", [], "c.yaml")


def test_a_check_says_the_kind_and_the_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "header", lambda path: ["it is old"])
    report = source.check(DATA / "tiny-llama.gguf", "m", [KLD], "c.yaml")
    assert report == {
        "kind": "decoder",
        "words": "a language model",
        "warnings": ["llama.cpp, loading the source: it is old"],
    }


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (
            "import os, sys; sys.stderr.write('x.cpp:7: GGML_ASSERT(ok) failed\\nmore\\n'); os.abort()",
            "llama.cpp, loading it, ended by SIGABRT (x.cpp:7: GGML_ASSERT(ok) failed)",
        ),
        (
            "import json; print(json.dumps({'error': 'llama.cpp cannot load it (no)'}))",
            "llama.cpp cannot load it (no)",
        ),
    ],
)
def test_what_kills_a_trial_is_one_line(
    script: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the child: an interpreter that runs another script."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{script}"\n', encoding="utf-8")
    stand_in.chmod(0o755)
    monkeypatch.setattr(trial.sys, "executable", str(stand_in))
    with trial.Process() as process, pytest.raises(QuantmillError) as raised:
        process.load(Path("m.gguf"), "logits")
    assert str(raised.value) == line
