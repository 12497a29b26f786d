"""The YAML at the head of a card, which the Hub reads: made by huggingface_hub's own classes."""

from __future__ import annotations

from typing import Any, Final

from quantmill.card.view import View
from quantmill.formats.measurements import Divergence, Embeddings, Perplexity
from quantmill.judge.quant import Quant
from quantmill.judge.scores import HUMANEVAL

_HUB_FIELDS: Final = (
    "license_name",
    "license_link",
    "language",
    "pipeline_tag",
    "library_name",
    "datasets",
    "quantized_by",
)
"""Fields of the config's `card` that the Hub knows by the same names."""


def front_matter(view: View) -> str:
    """The YAML without its `---` lines, for the files that are offered."""
    from huggingface_hub.repocard_data import ModelCardData

    tags = ["gguf", "quantized", "llama.cpp", *(["imatrix"] if view.published.imatrix else [])]
    if any(quant.needs_other_engine for quant in view.offered):
        tags.append("ik_llama.cpp")
    tags += view.card.get("tags") or []
    more = hub_fields(view.card)
    if results := [result for quant in view.offered for result in _results(quant, view.published.unranked)]:
        more |= {"model_name": view.title, "eval_results": results}
    license = view.card.get("license") or view.published.facts["licence"]
    return ModelCardData(license=license, tags=tags, **more).to_yaml()


def hub_fields(card: dict[str, Any]) -> dict[str, Any]:
    """The fields that the config gives as the Hub knows them."""
    fields = {field: card[field] for field in _HUB_FIELDS if card.get(field)}
    if card.get("base_model"):
        fields |= {"base_model": card["base_model"], "base_model_relation": "quantized"}
    return fields


def _results(quant: Quant, unranked: str) -> list[Any]:
    """What was measured of a file, as the Hub's EvalResult; only measures that are valid."""
    return [*([] if unranked else _losses(quant)), *_scores(quant)]


def _losses(quant: Quant) -> list[Any]:
    results = []
    if perplexity := quant.measured["perplexity"]:
        value = round(perplexity["perplexity"], 4)
        label = f"Perplexity of {quant.name}"
        results.append(_result(perplexity["corpus"], _chunks(perplexity), "perplexity", label, value))
    if (kld := quant.measured["kld"]) and quant.divergence:
        value = round(quant.divergence.mean, 6)
        label = f"KL divergence of {quant.name} from the source"
        results.append(_result(kld["corpus"], _chunks(kld), "kl_divergence", label, value))
    if (of := quant.measured["embeddings"]) and quant.distance:
        value, ranks = round(quant.distance.mean, 6), of["pooling"] == "rank"
        label = f"Distance of the {'scores' if ranks else 'embeddings'} of {quant.name} from the source's"
        task = "text-ranking" if ranks else "feature-extraction"
        results.append(_result(of["corpus"], _chunks(of), "distance", label, value, task))
    return results


def _scores(quant: Quant) -> list[Any]:
    results = []
    for name, score in quant.scores.items():
        value = round(score.value, 4)
        if name == HUMANEVAL:
            results.append(_result("openai_humaneval", name, "pass@1", f"pass@1 of {quant.name}", value))
        else:
            metric, task = score.words.split(",")[0], name.partition(" (")[0]
            results.append(_result(task, task, metric, f"{metric} of {quant.name}", value))
    return results


def _result(
    dataset: str, name: str, metric: str, label: str, value: float, task: str = "text-generation"
) -> Any:
    from huggingface_hub.repocard_data import EvalResult

    return EvalResult(
        task_type=task,
        dataset_type=dataset,
        dataset_name=name,
        metric_type=metric,
        metric_name=label,
        metric_value=value,
    )


def _chunks(report: Divergence | Perplexity | Embeddings) -> str:
    return f"{report['corpus']}, {report['chunks']} chunks of {report['context']} tokens"
