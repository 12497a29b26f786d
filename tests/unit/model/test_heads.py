"""Which draft heads the engine knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantmill.engine import library
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, encode_string, encode_u32, read_header
from quantmill.model.heads import CHAINED, SINGLE, check_head, has_values

DATA = Path(__file__).parents[2] / "data"
MTP = DATA / "tiny-mtp-Q8_0.gguf"
FACTS = {"file": "i.gguf", "dataset": None, "chunks": 1}


def changed(**values: object) -> Header:
    """The small model's header with other values; `__` stands for a dot."""
    header = read_header(MTP)
    encoded = {
        key.replace("__", "."): encode_u32(value) if isinstance(value, int) else encode_string(str(value))
        for key, value in values.items()
    }
    return type(header)(header.path, header.shards, header.tensors, {**header.kv, **encoded})


def test_a_known_head_may_be_measured() -> None:
    check_head(read_header(MTP), MTP)
    assert has_values(read_header(MTP), {**FACTS, "mtp": True}, MTP)


@pytest.mark.parametrize("imatrix", [None, FACTS])
def test_nothing_is_asked_of_a_head_that_is_not_measured(imatrix: object) -> None:
    assert not has_values(read_header(DATA / "tiny-llama.gguf"), imatrix, "m")


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(
        QuantmillError, match=r"^m: has no layer of multi-token prediction; leave out `imatrix"
    ):
        has_values(read_header(DATA / "tiny-llama.gguf"), {**FACTS, "mtp": True}, "m")


def test_a_head_that_the_engine_does_not_know_is_refused() -> None:
    header = changed(general__architecture="newest", newest__block_count=3, newest__nextn_predict_layers=1)
    message = (
        r"^m: the engine does not know a head for multi-token prediction of newest; leave out `imatrix.mtp"
    )
    with pytest.raises(QuantmillError, match=message):
        check_head(header, "m")


def test_more_heads_than_the_graph_takes_are_refused() -> None:
    header = changed(qwen35__nextn_predict_layers=2)
    with pytest.raises(QuantmillError, match=r"^m: the engine does not know 2 heads .* of qwen35; leave out"):
        check_head(header, "m")


def test_the_library_has_a_graph_of_each() -> None:
    symbols = library.path("llama", "mainline").read_bytes()
    named = {"glm4moe": "glm4_moe", "glm-dsa": "glm_dsa"}
    for architecture in SINGLE | CHAINED:
        model = f"llama_model_{named.get(architecture, architecture)}"
        assert f"N{len(model)}{model}9graph_mtpC".encode() in symbols, architecture
