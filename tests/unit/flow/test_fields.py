"""For each field of the config, the specs that it changes: exactly these, downstream ones included.

The fields are listed from the models of the config, so that a new one without a row here fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, get_args

import pytest
from pydantic import BaseModel

from models import DRAFTER, EMBEDDER, PROJECTOR
from quantmill.config.card import Card
from quantmill.config.file import Config
from quantmill.flow.project import Project

Specs = dict[str, str]


class Row(NamedTuple):
    """A change of one field: its place in the config, the new value, and the kinds of specs that change.

    `+kind`: a spec of that kind comes or goes. In capitals: several kinds, as below.
    `given` is what the config has beforehand.
    """

    path: str
    value: Any
    changes: str
    given: tuple[tuple[str, Any], ...] | list[tuple[str, Any]] = ()


BENCH: Final = "kld perplexity speed served humaneval tasks"
FILES: Final = f"quantized checked parts lock card {BENCH}"
PLANS: Final = f"plan memory {FILES}"
ALONE: Final = "plan memory quantized checked lock card"  # of a model that is neither measured nor published
SOURCE: Final = "source manifest check"
FED_BACK: Final = [("recipes.0.rounding", "gptq")]
WITH_HEAD: Final = [("models.local.source.path", "mtp.gguf")]
FEWER: Final = {"corpus": "calibration", "chunks": 2, "context": 128}
METADATA: Final = "quantized checked parts lock card"  # what is measured stays
GIVEN: Final = [("metadata", {"name": "Tiny", "sampling": {"temp": 1}})]
KINDS: Final = {
    "BENCH": BENCH,
    "FILES": FILES,
    "PLANS": PLANS,
    "METADATA": METADATA,
    "ALONE": ALONE,
    "SOURCE": SOURCE,
}

ROWS: Final[dict[str, Row]] = {
    "Config.models": Row(
        "models.more",
        {
            "source": {"path": "model.gguf"},
            "recipes": ["Q8_0"],
            "imatrix": None,
            "sensitivity": None,
            "bench": {},
            "publish": {},
        },
        "verify +card +check +lock +manifest +memory +plan +quantized +checked +source",
    ),
    "Config.corpora": Row(
        "corpora.held-out",
        {"sources": [{"name": "three", "path": "one.txt"}]},
        "card corpus kld perplexity",
    ),
    "Config.imatrix": Row(
        "imatrix",
        None,
        "allocated corpus feasibility sensitivity sensitivity_plot PLANS +corpus +imatrix",
        [("recipes.1.importance", {"sensitivity": 1.0}), ("models.checkpoint.recipes", ["Q8_0"])],
    ),
    "Config.rounding": Row(
        "rounding",
        "gptq",
        "allocated feasibility sensitivity sensitivity_plot PLANS +corpus +moments +nearest +nearest_kld",
        [("moments", FEWER)],
    ),
    "Config.moments": Row("moments", FEWER, "moments FILES", FED_BACK),
    "Config.sensitivity": Row(
        "sensitivity",
        None,
        "card corpus kld perplexity +corpus +sensitivity +sensitivity_plot",
        [("recipes", ["Q8_0"])],
    ),
    "Config.recipes": Row("recipes.0.base", "Q6_K", "PLANS"),
    "Config.split": Row("split", {"max": "1 MB"}, "FILES"),
    "Config.bench": Row("bench.kld", None, "card publish +kld"),
    "Config.publish": Row("publish.repo", "you/{model}", "card publish"),
    "Config.metadata": Row("metadata", {"name": "Tiny"}, "METADATA"),
    "Model.metadata": Row("models.local.metadata", {"name": "Tiny"}, "METADATA"),
    **{
        f"Metadata.{field}": Row(f"metadata.{field}", value, "METADATA", GIVEN)
        for field, value in {
            **dict.fromkeys(("name", "basename", "size_label", "finetune", "version", "author"), "Other"),
            **dict.fromkeys(("organization", "description", "url"), "Other"),
            "card": False,
            "sampling": {"top_k": 20},
        }.items()
    },
    "Metadata.chat_template": Row("metadata.chat_template", "template.jinja", "FILES", GIVEN),
    **{
        f"Sampling.{field}": Row(f"metadata.sampling.{field}", 0.5, "METADATA", GIVEN)
        for field in ("temp", "top_p", "min_p", "penalty_repeat")
    },
    **{
        f"Sampling.{field}": Row(f"metadata.sampling.{field}", 20, "METADATA", GIVEN)
        for field in ("top_k", "penalty_last_n")
    },
    "Config.results": Row("results", "elsewhere", ""),
    "Config.store": Row("store", {"path": "a store"}, ""),
    "Model.source": Row(
        "models.local.source.path",
        "other.gguf",
        "allocated corpus feasibility imatrix sensitivity sensitivity_plot PLANS SOURCE",
    ),
    "Model.card": Row("models.local.card", {"title": "Other"}, "card"),
    "Model.recipes": Row(
        "models.local.recipes",
        ["Q8_0"],
        "card lock memory parts publish +allocated +feasibility +plan +quantized +checked +BENCH",
    ),
    "Model.imatrix": Row(
        "models.local.imatrix",
        {"corpus": "calibration", "chunks": 2, "context": 128},
        "allocated corpus feasibility imatrix sensitivity sensitivity_plot PLANS",
    ),
    "Model.moments": Row("models.local.moments", FEWER, "moments FILES", FED_BACK),
    "Model.sensitivity": Row(
        "models.local.sensitivity",
        {"corpus": "tuning", "chunks": 2, "context": 128, "types": ["q8_0"]},
        "allocated corpus feasibility sensitivity sensitivity_plot PLANS",
    ),
    "Model.bench": Row("models.local.bench", {}, "card publish +corpus +BENCH"),
    "Model.language_model": Row(
        "models.seer.language_model", "hub", "card memory projector", [("models.seer", PROJECTOR)]
    ),
    "Model.publish": Row("models.local.publish", {"repo": "you/{model}"}, "card publish"),
    "PackageSource.package": Row("models.packaged.source.package", "other_models", "ALONE SOURCE"),
    "PackageSource.file": Row("models.packaged.source.file", "other.gguf", "ALONE SOURCE"),
    "HubSource.hf": Row("models.hub.source.hf", "you/model", "fetch ALONE SOURCE"),
    "HubSource.file": Row("models.hub.source.file", "other.gguf", "ALONE SOURCE"),
    "HubSource.revision": Row("models.hub.source.revision", "1" * 40, "fetch ALONE SOURCE"),
    "CheckpointSource.checkpoint": Row(
        "models.checkpoint.source.checkpoint",
        "other-checkpoint",
        "activations checkpoint_card convert corpus export imatrix ALONE SOURCE",
    ),
    "CheckpointSource.to": Row(
        "models.checkpoint.source.to",
        "f16",
        "activations checkpoint_card convert corpus export imatrix ALONE SOURCE",
    ),
    "CheckpointSource.keep": Row("models.checkpoint.source.keep", False, ""),
    "CheckpointSource.projector": Row(
        "models.eyes.source.projector",
        True,
        "convert ALONE SOURCE",
        [("models.eyes", EMBEDDER | {"source": {"checkpoint": "checkpoint"}, "bench": {}})],
    ),
    "CheckpointSource.pre_tokenizer": Row(
        "models.checkpoint.source.pre_tokenizer",
        "qwen2",
        "activations checkpoint_card convert corpus export imatrix ALONE SOURCE",
    ),
    "PathSource.path": Row(
        "models.imported.source.path",
        "other.gguf",
        "allocated imatrix sensitivity sensitivity_plot ALONE SOURCE",
    ),
    "Card.license": Row("models.local.card.license", "apache-2.0", "card"),
    "Card.base_model": Row("models.local.card.base_model", "me/base", "card"),
    "Card.title": Row("models.local.card.title", "T", "card"),
    "Card.language": Row("models.local.card.language", "en", "card"),
    "Card.tags": Row("models.local.card.tags", ["a"], "card"),
    "Card.pipeline_tag": Row("models.local.card.pipeline_tag", "text-generation", "card"),
    "Card.library_name": Row("models.local.card.library_name", "gguf", "card"),
    "Card.datasets": Row("models.local.card.datasets", ["me/data"], "card"),
    "Card.license_name": Row("models.local.card.license_name", "own", "card"),
    "Card.license_link": Row("models.local.card.license_link", "LICENSE", "card"),
    "Card.quantized_by": Row("models.local.card.quantized_by", "me", "card"),
    "Card.about": Row("models.local.card.about", "Another.", "card"),
    "Card.credits": Row("models.local.card.credits", "Them.", "card"),
    "Card.license_notes": Row("models.local.card.license_notes", "More.", "card"),
    "Card.contexts": Row("models.local.card.contexts", [128], "card memory"),
    "Card.same_size": Row(
        "models.local.card.same_size", [{"name": "Other", "csv": "figures.csv", "source": "there"}], "card"
    ),
    "TextFile.file": Row(
        "models.local.card.about.file", "other", "card", [("models.local.card.about", {"file": "words.md"})]
    ),
    "ComparedModel.name": Row(
        "models.local.card.same_size.0.name",
        "Another",
        "card",
        [("models.local.card.same_size", [{"name": "Other", "csv": "figures.csv", "source": "there"}])],
    ),
    "ComparedModel.model": Row(
        "models.local.card.same_size.0.model",
        "packaged",
        "card",
        [("models.local.card.same_size", [{"name": "Other", "model": "hub"}])],
    ),
    "ComparedModel.results": Row(
        "models.local.card.same_size.0.results",
        "other-measured",
        "card",
        [("models.local.card.same_size", [{"name": "Other", "results": "measured"}])],
    ),
    "ComparedModel.csv": Row(
        "models.local.card.same_size.0.csv",
        "other.csv",
        "card",
        [("models.local.card.same_size", [{"name": "Other", "csv": "figures.csv", "source": "there"}])],
    ),
    "ComparedModel.source": Row(
        "models.local.card.same_size.0.source",
        "elsewhere",
        "card",
        [("models.local.card.same_size", [{"name": "Other", "csv": "figures.csv", "source": "there"}])],
    ),
    "BudgetRecipe.name": Row(
        "recipes.3.name",
        "other",
        "card lock memory parts publish +allocated +feasibility +plan +quantized +checked +BENCH",
    ),
    "BudgetRecipe.template": Row(
        "recipes.3",
        {"name": "sized", "template": "preset", "base": "Q8_0"},
        "PLANS +allocated +feasibility",
    ),
    "BudgetRecipe.size": Row("recipes.3.size", "2 MB", "allocated feasibility PLANS"),
    "BudgetRecipe.bpw": Row("models.imported.recipes.0.bpw", 5, "allocated ALONE"),
    "BudgetRecipe.memory": Row(
        "recipes.4.memory", {"total": "8 MiB", "context": 128}, "allocated feasibility PLANS"
    ),
    "BudgetRecipe.types": Row("recipes.3.types", ["q8_0"], "allocated feasibility PLANS"),
    "BudgetRecipe.harmonize": Row("recipes.3.harmonize", [], "allocated feasibility PLANS"),
    "BudgetRecipe.pin": Row(
        "recipes.3.pin", [{"role": "output", "type": "q8_0"}], "allocated feasibility PLANS"
    ),
    "BudgetRecipe.at_least": Row(
        "recipes.3.at_least", {"attn_v": "q4_K", "tg": 20}, "allocated feasibility PLANS +speeds"
    ),
    "BudgetRecipe.at_most": Row("recipes.3.at_most", {"attn_v": "q4_K"}, "allocated feasibility PLANS"),
    "BudgetRecipe.engine": Row(
        "recipes.3.engine",
        "ik",
        "allocated kld feasibility parts perplexity publish speed ALONE +BENCH",
    ),
    "BudgetRecipe.imatrix": Row("recipes.3.imatrix", "none", "allocated feasibility PLANS"),
    "BudgetRecipe.objective": Row("recipes.3.objective", "error", "allocated feasibility PLANS"),
    "BudgetRecipe.acceptance_test": Row("recipes.3.acceptance_test", False, "card"),
    "BudgetRecipe.split": Row("recipes.3.split", {"max": "1 MB"}, "FILES"),
    "BudgetRecipe.rounding": Row(
        "recipes.1.rounding",
        "gptq",
        "allocated feasibility sensitivity sensitivity_plot PLANS +moments +nearest +nearest_kld",
        [("recipes", ["Q8_0", {"name": "sized", "template": "budget", "size": "1 MB"}])],
    ),
    "BudgetRecipe.keep": Row("recipes.3.keep", "grid", "allocated feasibility PLANS"),
    "BudgetRecipe.mtp": Row("recipes.3.mtp", "none", "allocated feasibility PLANS", WITH_HEAD),
    "MemoryBudget.total": Row("recipes.4.memory.total", "8 MiB", "allocated feasibility PLANS"),
    "MemoryBudget.context": Row("recipes.4.memory.context", 64, "allocated feasibility PLANS"),
    "MemoryBudget.cache": Row("recipes.4.memory.cache", "q8_0", "allocated feasibility PLANS"),
    "MemoryBudget.reserve": Row("recipes.4.memory.reserve", "1 KiB", "allocated feasibility PLANS"),
    **{
        f"PoolsBudget.{field}": Row(
            f"recipes.4.memory.{field}",
            value,
            "allocated feasibility PLANS",
            [("recipes.4.memory", {"gpu": "8 MiB", "cpu": "8 MiB", "context": 128})],
        )
        for field, value in (
            ("gpu", "9 MiB"),
            ("cpu", "9 MiB"),
            ("context", 64),
            ("cache", "q8_0"),
            ("reserve", "1 KiB"),
        )
    },
    "Split.max": Row("recipes.0.split.max", "2 MB", "FILES", [("recipes.0.split", {"max": "1 MB"})]),
    "Split.header": Row("recipes.0.split.header", True, "FILES", [("recipes.0.split", {"max": "1 MB"})]),
    "Recipe.name": Row(
        "recipes.0.name", "other", "card lock memory parts publish +plan +quantized +checked +BENCH"
    ),
    "Recipe.template": Row("recipes.0.template", "own", "PLANS"),
    "Recipe.importance": Row("recipes.1.importance", {"imatrix": 1.0}, "PLANS"),
    "Recipe.file": Row("recipes.2.file", "other-lines.txt", "PLANS"),
    "Recipe.form": Row("recipes.2.form", "tensor-types", "PLANS"),
    "Recipe.scheme": Row("models.checkpoint.recipes.1.scheme", "W4A16", "checkpoint_card export"),
    "Recipe.split": Row("recipes.0.split", {"max": "1 MB"}, "FILES"),
    "Recipe.rounding": Row(
        "recipes.0.rounding", "gptaq", "PLANS +cross +gptq +moments +nearest +nearest_kld"
    ),
    "Recipe.acceptance_test": Row("recipes.0.acceptance_test", False, "card +nearest +nearest_kld", FED_BACK),
    "Recipe.keep": Row("recipes.0.keep", "grid", "PLANS"),
    "Recipe.mtp": Row("recipes.0.mtp", {"type": "q6_K"}, "PLANS", WITH_HEAD),
    "Importance.imatrix": Row("recipes.1.importance.imatrix", 2.0, "PLANS"),
    "Importance.sensitivity": Row("recipes.1.importance.sensitivity", 2.0, "PLANS"),
    "Importance.scores": Row("recipes.1.importance.scores", None, "PLANS"),
    "Scored.path": Row("recipes.1.importance.scores.path", "other", "PLANS"),
    "Scored.weight": Row("recipes.1.importance.scores.weight", 3.0, "PLANS"),
    "Chunks.corpus": Row(
        "bench.perplexity.corpus",
        "more",
        "card perplexity +corpus",
        [("corpora.more", {"sources": [{"name": "two", "path": "one.txt"}]})],
    ),
    "Chunks.chunks": Row("bench.perplexity.chunks", 2, "card perplexity"),
    "Chunks.context": Row("bench.perplexity.context", 64, "card corpus perplexity", [("bench.kld", None)]),
    "Calibration.corpus": Row(
        "imatrix.corpus",
        "more",
        "activations allocated checkpoint_card corpus export feasibility imatrix "
        "sensitivity sensitivity_plot PLANS +corpus",
        [("corpora.more", {"sources": [{"name": "two", "path": "one.txt"}]})],
    ),
    "Calibration.chunks": Row(
        "imatrix.chunks",
        2,
        "activations allocated checkpoint_card corpus export feasibility imatrix "
        "sensitivity sensitivity_plot PLANS",
    ),
    "Calibration.mtp": Row(
        "imatrix.mtp", True, "allocated feasibility imatrix sensitivity sensitivity_plot PLANS"
    ),
    "Calibration.context": Row(
        "imatrix.context",
        64,
        "activations allocated checkpoint_card corpus export imatrix sensitivity sensitivity_plot PLANS",
    ),
    "ImportedImatrix.file": Row(
        "models.imported.imatrix.file", "other-imatrix.dat", "allocated imatrix ALONE"
    ),
    "Probes.corpus": Row(
        "sensitivity.corpus",
        "more",
        "allocated corpus sensitivity sensitivity_plot PLANS +corpus",
        [("corpora.more", {"sources": [{"name": "two", "path": "two.txt"}]})],
    ),
    "Probes.chunks": Row("sensitivity.chunks", 2, "allocated corpus sensitivity sensitivity_plot PLANS"),
    "Probes.context": Row("sensitivity.context", 64, "allocated corpus sensitivity sensitivity_plot PLANS"),
    "Probes.minutes": Row("sensitivity.minutes", 5, "allocated sensitivity sensitivity_plot PLANS"),
    "Probes.types": Row(
        "sensitivity.types",
        ["q4_K", "q6_K"],
        "allocated feasibility sensitivity sensitivity_plot PLANS",
    ),
    "ImportedSensitivity.results": Row(
        "models.imported.sensitivity.import", "other", "allocated sensitivity sensitivity_plot ALONE"
    ),
    "ImportedSensitivity.curve": Row(
        "models.imported.sensitivity.curve", "other", "allocated sensitivity sensitivity_plot ALONE"
    ),
    "Bench.kld": Row("bench.kld", None, "card publish +kld"),
    "Bench.perplexity": Row("bench.perplexity", None, "card publish +perplexity"),
    "Bench.embeddings": Row(
        "models.embedder.bench.embeddings", None, "card +corpus +embeddings", [("models.embedder", EMBEDDER)]
    ),
    "Bench.projector": Row(
        "models.seer.bench.projector", None, "card +projector", [("models.seer", PROJECTOR)]
    ),
    "Media.media": Row(
        "models.seer.bench.projector.media", ["other.png"], "card projector", [("models.seer", PROJECTOR)]
    ),
    "Media.question": Row(
        "models.seer.bench.projector.question",
        "What is this?",
        "card projector",
        [("models.seer", PROJECTOR | {"language_model": "local"})],
    ),
    "Bench.draft": Row(
        "models.drafter.bench.draft", None, "card +corpus +draft", [("models.drafter", DRAFTER)]
    ),
    "Bench.speed": Row("bench.speed", None, "card publish +speed"),
    "Bench.served": Row("bench.served", None, "card publish +served"),
    "Bench.humaneval": Row("bench.humaneval", None, "card publish +humaneval"),
    "Bench.tasks": Row("bench.tasks", None, "card publish +tasks"),
    "Speed.prompt": Row("bench.speed.prompt", 8, "card speed"),
    "Speed.generate": Row("bench.speed.generate", 8, "card speed"),
    "Speed.repetitions": Row("bench.speed.repetitions", 3, "card speed"),
    "Served.workloads": Row(
        "bench.served.workloads", [{"name": "other", "prompt": 8, "generate": 8}], "card served"
    ),
    "Served.repetitions": Row("bench.served.repetitions", 3, "card served"),
    "Served.server": Row("bench.served.server", "other", "card served"),
    "Served.ik_server": Row(
        "bench.served.ik_server", "other", "card publish +served", [("recipes.3.engine", "ik")]
    ),
    "Served.draft": Row(
        "models.drafter.bench.served.draft", [1, 2], "card served", [("models.drafter", DRAFTER)]
    ),
    "Workload.name": Row("bench.served.workloads.0.name", "other", "card served"),
    "Workload.prompt": Row("bench.served.workloads.0.prompt", 9, "card served"),
    "Workload.generate": Row("bench.served.workloads.0.generate", 9, "card served"),
    "HumanEval.problems": Row("bench.humaneval.problems", "other.jsonl", "card humaneval"),
    "HumanEval.limit": Row("bench.humaneval.limit", 1, "card humaneval"),
    "HumanEval.max_tokens": Row("bench.humaneval.max_tokens", 9, "card humaneval"),
    "HumanEval.prompt": Row("bench.humaneval.prompt", "completion", "card humaneval"),
    "HumanEval.instruction": Row("bench.humaneval.instruction", "Do.", "card humaneval"),
    "HumanEval.template": Row("bench.humaneval.template", {"enable_thinking": False}, "card humaneval"),
    "HumanEval.stop": Row("bench.humaneval.stop", ["x"], "card humaneval"),
    "HumanEval.parallel": Row("bench.humaneval.parallel", 2, "card humaneval"),
    "HumanEval.seconds": Row("bench.humaneval.seconds", 1.0, "card humaneval"),
    "HumanEval.memory": Row("bench.humaneval.memory", "2 GiB", "card humaneval"),
    "HumanEval.accept_unsandboxed": Row("bench.humaneval.accept_unsandboxed", True, "card humaneval"),
    "Tasks.names": Row("bench.tasks.names", ["other"], "card tasks"),
    "Tasks.include": Row("bench.tasks.include", "other-tasks", "card tasks"),
    "Tasks.limit": Row("bench.tasks.limit", 1, "card tasks"),
    "Tasks.shots": Row("bench.tasks.shots", 1, "card tasks"),
    "Tasks.chat": Row("bench.tasks.chat", True, "card tasks"),
    "Tasks.context": Row("bench.tasks.context", 64, "card tasks"),
    "Publish.repo": Row("publish.repo", "you/{model}", "card publish"),
    "Publish.ollama": Row("publish.ollama", "me/{model}", "publish"),
    "Publish.modelscope": Row("publish.modelscope", "me/{model}", "publish"),
    "Publish.private": Row("publish.private", True, "publish"),
    "Publish.revision": Row("publish.revision", "new", "publish"),
    "Publish.split": Row("publish.split", "1 GB", "card lock parts publish"),
    "Publish.include": Row("publish.include", ["logs"], "card publish"),
    "Publish.withhold": Row("publish.withhold", "dominated", "card"),
    "Publish.overwrite": Row("publish.overwrite", True, "publish"),
    "Publish.sign": Row("publish.sign", "key.pub", "card publish +signature"),
    "Publish.verify": Row("publish.verify", "sample", "card verify +verified"),
    "Corpus.seed": Row("corpora.held-out.seed", 2, "card corpus kld perplexity"),
    "Corpus.sources": Row(
        "corpora.held-out.sources", [{"name": "one", "path": "one.txt"}], "card corpus kld perplexity"
    ),
    "CorpusSource.name": Row("corpora.held-out.sources.0.name", "other", "card corpus kld perplexity"),
    "CorpusSource.path": Row("corpora.held-out.sources.0.path", "other", "card corpus kld perplexity"),
    "CorpusSource.column": Row("corpora.held-out.sources.0.column", "text", "card corpus kld perplexity"),
    "CorpusSource.rows": Row("corpora.held-out.sources.0.rows", 3, "card corpus kld perplexity"),
    "CorpusSource.weight": Row("corpora.held-out.sources.0.weight", 0.5, "card corpus kld perplexity"),
    "Config.offload": Row("offload", {"gpu_layers": 3}, ""),
    "Config.shards": Row("shards", 4, ""),
    "Model.offload": Row("models.local.offload", {"gpu_layers": 3}, ""),
    "Offload.gpu_layers": Row("offload.gpu_layers", "auto", ""),
    "Offload.devices": Row("offload.devices", ["CUDA0"], ""),
    "Offload.tensor_split": Row("offload.tensor_split", [3.0, 1.0], ""),
    "Offload.tensors": Row("offload.tensors", {"exps": "CPU"}, ""),
    "Offload.flash_attention": Row("offload.flash_attention", "off", ""),
    "Offload.batch": Row("offload.batch", 2048, ""),
    "Offload.ubatch": Row("offload.ubatch", 256, ""),
    "Offload.gpus": Row("offload.gpus", 1, ""),
    "Offload.rpc": Row("offload.rpc", ["gpu-box:50052"], ""),
    "Store.path": Row("store.path", "a store", ""),
    "Store.max": Row("store.max", "1 GiB", ""),
    "Store.read": Row("store.read", ["shared"], ""),
}


def models_of(
    annotation: Any, known: dict[type[BaseModel], None] | None = None
) -> dict[type[BaseModel], None]:
    """The models of the config that a type is made of, itself included."""
    known = {} if known is None else known
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in known:
        known[annotation] = None
        for field in annotation.model_fields.values():
            models_of(field.annotation, known)
    for part in get_args(annotation):
        models_of(part, known)
    return known


def fields() -> Iterator[str]:
    """Every field of the config, as `Model.field`."""
    for model in models_of(Config):
        yield from (f"{model.__name__}.{field}" for field in model.model_fields)


def expanded(words: str) -> set[str]:
    """The kinds behind words, those in capitals and with a plus among them."""
    kinds = set()
    for word in words.split():
        plus, name = word[: word.startswith("+")], word.removeprefix("+")
        kinds |= {plus + kind for kind in KINDS.get(name, name).split()}
    return kinds


def changed(before: Specs, after: Specs) -> set[str]:
    """The kinds of specs that changed; `+kind` of those that are only in one."""
    other = {name.split()[0] for name in before.keys() & after.keys() if before[name] != after[name]}
    return other | {f"+{name.split()[0]}" for name in before.keys() ^ after.keys()}


def test_each_field_of_the_config_has_a_row() -> None:
    assert sorted(ROWS) == sorted(fields())


@pytest.mark.parametrize("field", ROWS)
def test_a_field_changes_exactly_these_specs(
    make: Callable[..., Project], all_specs: Callable[[Project], Specs], field: str
) -> None:
    row = ROWS[field]
    before, after = all_specs(make(*row.given)), all_specs(make(*row.given, (row.path, row.value)))
    assert changed(before, after) == expanded(row.changes)


@pytest.mark.parametrize("field", Card.model_fields)
def test_a_field_of_the_card_reaches_the_card(
    make: Callable[..., Project], all_specs: Callable[[Project], Specs], field: str
) -> None:
    row = ROWS[f"Card.{field}"]
    before, after = all_specs(make()), all_specs(make((row.path, row.value)))
    assert before["card local"] != after["card local"]


def test_the_same_config_has_the_same_specs(
    make: Callable[..., Project], all_specs: Callable[[Project], Specs]
) -> None:
    one, other = all_specs(make()), all_specs(make())
    assert one == other
    assert len(one) > 100


def test_with_metadata_the_card_reaches_the_files(
    make: Callable[..., Project], all_specs: Callable[[Project], Specs]
) -> None:
    given = ("models.local.metadata", {"name": "Tiny"})
    before = all_specs(make(given))
    after = all_specs(make(given, ("models.local.card.license", "apache-2.0")))
    assert changed(before, after) == expanded("METADATA")
