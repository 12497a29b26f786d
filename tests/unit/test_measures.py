"""The table of measures agrees with the config, the stages and the modules that they run."""

from __future__ import annotations

import importlib.util

from quantmill.config.bench import Bench
from quantmill.measures import MEASURES, taken_in


def test_each_field_under_bench_is_a_measure_in_the_same_order() -> None:
    assert list(MEASURES) == list(Bench.model_fields)


def test_chunked_measures_are_those_whose_config_names_a_corpus() -> None:
    chunks = {"corpus": "held-out", "chunks": 4, "context": 512}
    bench = Bench.model_validate({"kld": chunks, "perplexity": chunks, "embeddings": chunks, "draft": chunks})
    assert list(bench.chunked) == [measure.name for measure in MEASURES.values() if measure.chunked]


def test_each_measure_has_a_stage_with_a_module() -> None:
    for measure in MEASURES.values():
        assert importlib.util.find_spec(f"quantmill.{measure.stage}") is not None, measure.name


def test_files_lie_in_the_folder_of_the_row() -> None:
    assert MEASURES["humaneval"].path("Q4_K_M") == "bench/Q4_K_M/humaneval.json"
    assert MEASURES["humaneval"].sample_paths("source") == ["bench/source/humaneval.jsonl"]
    assert MEASURES["kld"].sample_paths("source") == []


def test_only_llama_cpp_generates() -> None:
    assert [measure.name for measure in taken_in("mainline")] == list(MEASURES)
    assert [measure.name for measure in taken_in("ik")] == ["kld", "perplexity", "speed"]
