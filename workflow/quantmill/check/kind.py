"""What kind of model a GGUF holds, by its metadata, and what can be measured of each kind.

Sources: `llm_arch`, `llama_model_has_encoder` and `llama_model::create_memory` of llama.cpp's src/
(llama-cpp-python 0.3.36), and `general.type` of gguf-py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header
from quantmill.model.header import read_source
from quantmill.model.heads import check_head, is_draft


class Kind(NamedTuple):
    """A kind of model: `words` as in "this is ..."; `why` is what it lacks, and what follows.

    `predicts`: it predicts the next token, so that its divergence, perplexity and text can be measured.
    `embeds`: it gives one vector of a text, or one score of a pair, which can be compared with the source's.
    `observed`: an importance matrix can be collected. `answers`: what it computes of a few tokens,
    `logits` or `embeddings`; empty where llama.cpp evaluates it only with another model, or not at all.
    `loads`: llama.cpp loads it by itself. `refused`: no source at all, with the cure.
    """

    name: str
    words: str
    why: str = ""
    predicts: bool = False
    embeds: bool = False
    observed: bool = False
    answers: str = ""
    loads: bool = True
    refused: str = ""


class Evaluation(NamedTuple):
    """What the config asks of a model: `field` such as `bench.kld`, `place` where that stands in the
    config, and the tokens of a chunk (0: it has none).
    """

    field: str
    place: str
    context: int = 0


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("decoder", "a language model", predicts=True, observed=True, answers="logits"),
        Kind(
            "encoder",
            "an embedding model",
            "it predicts no next token",
            embeds=True,
            observed=True,
            answers="embeddings",
        ),
        Kind(
            "reranker",
            "a reranker",
            "it predicts no next token",
            embeds=True,
            observed=True,
            answers="embeddings",
        ),
        Kind(
            "diffusion",
            "a diffusion language model",
            "it predicts no next token",
            observed=True,
            answers="logits",
        ),
        Kind("encoder-decoder", "an encoder-decoder model", "quantmill evaluates none", answers="logits"),
        Kind(
            "text-encoder",
            "the encoder of an encoder-decoder model",
            "it predicts no next token, and llama.cpp collects no importance values of it",
            answers="embeddings",
        ),
        Kind("speech", "a model of speech", "it predicts sound and no text"),
        Kind("draft", "a draft model", "it only works beside the model that it drafts for"),
        Kind("projector", "a multimodal projector", "it only works beside a language model", loads=False),
        Kind(
            "adapter",
            "a LoRA adapter",
            loads=False,
            refused="merge it into its model (llama-export-lora) and take that as the source",
        ),
        Kind(
            "imatrix",
            "an importance matrix and no model",
            loads=False,
            refused="name the model as the source, and this file under imatrix",
        ),
        Kind("vocabulary", "a vocabulary without weights", loads=False, refused="take the model's own file"),
    )
}
"""All kinds, by name."""

# By architecture; all others are decoders.
_ARCHITECTURES: Final = {
    **dict.fromkeys(
        (
            "bert",
            "modern-bert",
            "nomic-bert",
            "nomic-bert-moe",
            "neo-bert",
            "jina-bert-v2",
            "jina-bert-v3",
            "eurobert",
            "gemma-embedding",
            "llama-embed",
        ),
        "encoder",
    ),
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), "diffusion"),
    **dict.fromkeys(("eagle3", "dflash", "gemma4-assistant"), "draft"),
    "t5": "encoder-decoder",
    "t5encoder": "text-encoder",
    **dict.fromkeys(("wavtokenizer-dec", "pockettts"), "speech"),
    "clip": "projector",
}
_TYPES: Final = {"adapter": "adapter", "mmproj": "projector", "imatrix": "imatrix", "vocab": "vocabulary"}
_POOLED: Final = (1, 2, 3)  # LLAMA_POOLING_TYPE_MEAN, _CLS, _LAST
_RANK: Final = 4  # LLAMA_POOLING_TYPE_RANK

_TEXT: Final = frozenset(
    (
        *("imatrix", "moments", "sensitivity"),
        *(f"bench.{name}" for name in ("kld", "perplexity", "embeddings", "draft", "humaneval", "tasks")),
    )
)
"""What needs a tokenizer."""

_OBSERVED: Final = frozenset(("imatrix", "moments"))
"""What is collected of the inputs of weights."""

_DRAFTED: Final = frozenset(("bench.draft", "bench.served.draft"))
"""What needs a draft head."""

_EMBEDDED: Final = "bench.embeddings"
_PROJECTED: Final = "bench.projector"
"""What is measured of embeddings and of projectors, where all other measures are of the next token."""


def pooling_of(header: Header) -> str:
    """How the vectors of a text's tokens become its embedding: `mean`, `cls`, `last`, or `rank` of a
    reranker; the mean where the metadata name none.
    """
    names = {1: "mean", 2: "cls", 3: "last", _RANK: "rank"}
    return names.get(header.value(f"{header.architecture}.pooling_type", 0), "mean")


def rerank_template(header: Header) -> str:
    """A reranker's own template with `{query}` and `{document}`; empty where it has none."""
    return header.text("tokenizer.chat_template.rerank") or ""


def kind_of(header: Header) -> Kind:
    """The kind of the model with that header."""
    arch = header.architecture
    if is_draft(header):
        return KINDS["draft"]
    named = _TYPES.get(str(header.value("general.type", "model"))) or _ARCHITECTURES.get(arch)
    if named is None and not header.tensors:
        named = "vocabulary"
    pooling = header.value(f"{arch}.pooling_type", 0)
    if named in (None, "encoder") and pooling == _RANK:
        return KINDS["reranker"]
    if named is None and (pooling in _POOLED or header.value(f"{arch}.attention.causal", True) is False):
        return KINDS["encoder"]
    return KINDS[named or "decoder"]


def refuse_early(path: Path, model: str, requested: Iterable[Evaluation], where: str) -> bool:
    """`refuse` where the model's file can be read already; whether it could."""
    try:
        header = read_source(path)
    except QuantmillError:  # not there yet, or damaged, of which its own stages say more
        return False
    refuse(header, model, requested, where)
    return True


def refuse(header: Header, model: str, requested: Iterable[Evaluation], where: str) -> None:
    """QuantmillError where the model `model` (its name in the config) is no source, or cannot have all
    that is requested of it; `where` is the config's file.
    """
    kind, requested = kind_of(header), list(requested)
    words = f"{model} is {kind.words} (architecture {header.architecture or 'not named'})"
    if kind.refused:
        raise QuantmillError(words, f"{where}: models.{model}.source", kind.refused)
    wrong = [evaluation for evaluation in requested if not _possible(kind, evaluation.field)]
    if wrong:
        sections = dict.fromkeys(evaluation.field.partition(".")[0] for evaluation in wrong)
        empty = ", ".join(f"{section}: {'{}' if section == 'bench' else 'null'}" for section in sections)
        fields = [evaluation.field for evaluation in wrong]
        named = " and ".join([", ".join(fields[:-1]), fields[-1]] if fields[1:] else fields)
        cure = f"leave {named} out for it (models: {{{model}: {{{empty}}}}})"
        cure += ", and give its recipes rounding: nearest" if "moments" in fields else ""
        if kind.embeds or kind.name == "projector":
            cure += f"; {_EMBEDDED if kind.embeds else _PROJECTED} is the measure that fits it"
        lacking = "reads no pictures" if fields == [_PROJECTED] else "gives no embedding of a text"
        why = kind.why or f"it {lacking}"
        raise QuantmillError(f"{words}: {why}", f"{where}: {wrong[0].place}", cure)
    _refuse_without_tokenizer(header, model, requested, where)
    for evaluation in requested:
        if evaluation.field in _DRAFTED:
            check_head(header, f"{where}: {evaluation.place}: {model}", evaluation.field)
    positions = next((t.shape[-1] for t in header.tensors if t.name == "position_embd.weight"), None)
    for evaluation in requested:
        if positions is not None and evaluation.context > positions:
            what = f"{evaluation.context} tokens, and {model} has {positions} positions"
            raise QuantmillError(what, f"{where}: {evaluation.place}", f"give {positions} or fewer")


def _possible(kind: Kind, field: str) -> bool:
    """Whether a kind of model can have what a field of the config asks for."""
    if field in _OBSERVED:
        return kind.observed
    if field == "sensitivity":
        return kind.predicts or kind.embeds
    if field == _PROJECTED:
        return kind.name == "projector"
    return kind.embeds if field == _EMBEDDED else kind.predicts


def _refuse_without_tokenizer(header: Header, model: str, requested: list[Evaluation], where: str) -> None:
    if header.value("tokenizer.ggml.model") != "none":
        return
    for evaluation in requested:
        if evaluation.field in _TEXT:
            what = f"{model} has no tokenizer, so that no text can be cut to tokens"
            cure = "leave it out, or take a file of the model that has one"
            raise QuantmillError(what, f"{where}: {evaluation.place}", cure)
