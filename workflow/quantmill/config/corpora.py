"""Text in the user's file: the corpora, and how much of one a stage takes."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag, model_validator

from quantmill.config.fields import Count, FilePath, Name, Positive, Strict, Text
from quantmill.config.refusal import refuse, refuse_twice
from quantmill.formats.imatrix import LEAST_ROWS


class CorpusSource(Strict):
    """One parquet or plain .txt file of a corpus."""

    name: Name = Field(description="its name in reports and on the card")
    path: FilePath = Field(description="a .parquet or .txt file")
    column: Text | None = Field(
        default=None,
        description="the column of a parquet file; default: content, text, messages, conversations, ... or "
        "the only one with texts or chats",
    )
    rows: Count | None = Field(
        default=None, description="at most this many rows, drawn by the seed; default: all"
    )
    weight: Positive = Field(
        default=1.0, description="its share of the tokens, relative to the other sources"
    )


class Corpus(Strict):
    """A corpus: texts, mixed by weight and shuffled by a seed."""

    seed: Annotated[int, Field(ge=0)] = Field(default=1, description="another seed gives other rows")
    sources: Annotated[list[CorpusSource], Field(min_length=1)] = Field(description="files of texts or chats")

    @model_validator(mode="after")
    def _distinct(self) -> Corpus:
        refuse_twice("sources", [source.name for source in self.sources])
        return self


class Chunks(Strict):
    """The first chunks of a corpus."""

    imported: ClassVar[bool] = False

    corpus: Name = Field(description="the name of a corpus under `corpora`")
    chunks: Count = Field(description="how many chunks")
    context: Annotated[int, Field(ge=8)] = Field(default=512, description="tokens per chunk")


class Calibration(Chunks):
    """The chunks of an importance matrix that is measured."""

    mtp: bool = Field(
        default=False,
        description="whether the draft head (multi-token prediction) is measured too, on the model's last "
        "hidden states; without, its tensors have no importance values and take no type that needs them",
    )


class ImportedImatrix(Strict):
    """A published importance matrix: its file, in either of llama.cpp's formats."""

    imported: ClassVar[bool] = True

    file: FilePath = Field(description="a GGUF or .dat, checked against the model")


def _kind_of_imatrix(given: Any) -> str:
    imported = isinstance(given, ImportedImatrix) or (isinstance(given, dict) and "file" in given)
    return "<file>" if imported else "<chunks>"


Imatrix = Annotated[
    Annotated[Calibration, Tag("<chunks>")] | Annotated[ImportedImatrix, Tag("<file>")],
    Discriminator(_kind_of_imatrix),
]


def check_uses(uses: Iterable[tuple[str, str, Chunks | None]], corpora: Collection[str]) -> None:
    """Refuse a corpus that is not defined, that is tuned on and measured on too, or that is cut in two ways.

    `uses` are the purpose, such as `bench.kld`, its place in the file, and the chunks; what is tuned on
    comes first. `corpora` are those defined.
    """
    tuned: dict[str, str] = {}
    contexts: dict[str, int] = {}
    for purpose, at, used in uses:
        if used is None:
            continue
        if purpose == "imatrix" and used.context < LEAST_ROWS:
            text = f"inputs of under {LEAST_ROWS} tokens enter no imatrix; give {LEAST_ROWS} or more"
            raise refuse("few_rows", text, f"{at}.context")
        if used.corpus not in corpora:
            near = difflib.get_close_matches(used.corpus, corpora, 1)
            cure = f"did you mean {near[0]}?" if near else "define it under corpora"
            raise refuse("no_corpus", f"no corpus named {used.corpus}; {cure}", f"{at}.corpus")
        both_calibrate = (tuned.get(used.corpus), purpose) == ("imatrix", "moments")
        if used.corpus in tuned and not both_calibrate:
            text = f"{used.corpus} is the corpus of {tuned[used.corpus]} too; measure on one of its own"
            raise refuse("same_corpus", text, f"{at}.corpus")
        if used.context != contexts.setdefault(used.corpus, used.context):
            elsewhere = "for imatrix" if both_calibrate else "elsewhere under bench"
            text = f"{used.corpus} is cut to chunks of {contexts[used.corpus]} {elsewhere}"
            raise refuse("two_contexts", f"{text}; use one context for it", f"{at}.context")
        if not purpose.startswith("bench."):
            tuned.setdefault(used.corpus, purpose)
