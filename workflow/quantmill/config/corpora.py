"""Text in the user's file: the corpora, and how much of one a stage takes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag, model_validator

from quantmill.config.fields import Count, FilePath, Name, Positive, Strict, Text
from quantmill.config.refusal import refuse_twice


class CorpusSource(Strict):
    """One parquet or plain .txt file of a corpus."""

    name: Name = Field(description="the domain, as the card shows it")
    path: FilePath = Field(description="the file")
    column: Text | None = Field(
        default=None,
        description="default: content, text, messages, conversations, ... or the only one that fits",
    )
    rows: Count | None = Field(default=None, description="at most so many rows, drawn by the seed")
    weight: Positive = Field(default=1.0, description="share of the tokens")


class Corpus(Strict):
    """Text, mixed by weight and shuffled by a seed."""

    seed: Annotated[int, Field(ge=0)] = Field(default=1, description="of the order of rows")
    sources: Annotated[list[CorpusSource], Field(min_length=1)] = Field(description="its files")

    @model_validator(mode="after")
    def _distinct(self) -> Corpus:
        refuse_twice("sources", [source.name for source in self.sources])
        return self


class Chunks(Strict):
    """So many chunks of so many tokens of a corpus."""

    imported: ClassVar[bool] = False

    corpus: Name = Field(description="one of corpora")
    chunks: Count = Field(description="how many chunks")
    context: Annotated[int, Field(ge=8)] = Field(default=512, description="tokens of a chunk")


class ImportedImatrix(Strict):
    """A published importance matrix: its file, in either of llama.cpp's formats."""

    imported: ClassVar[bool] = True

    file: FilePath = Field(description="GGUF or .dat; it is checked against the model")


def _kind_of_imatrix(given: Any) -> str:
    imported = isinstance(given, ImportedImatrix) or (isinstance(given, dict) and "file" in given)
    return "<file>" if imported else "<chunks>"


Imatrix = Annotated[
    Annotated[Chunks, Tag("<chunks>")] | Annotated[ImportedImatrix, Tag("<file>")],
    Discriminator(_kind_of_imatrix),
]
