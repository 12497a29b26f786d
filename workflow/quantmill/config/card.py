"""What the user's file says to those who download: the card's own words, and what is published where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from quantmill.config.fields import (
    Count,
    FilePath,
    Name,
    OllamaPlace,
    PublishedRepository,
    Size,
    Strict,
    Text,
    Texts,
    size_bytes,
)
from quantmill.config.refusal import refuse, refuse_twice
from quantmill.errors import QuantmillError
from quantmill.files import read_user_text

_LEAST_SPLIT = 10**6
_LONGEST_TEXT = 1 << 16


class TextFile(Strict):
    """A text of the card in a markdown file of its own."""

    file: FilePath = Field(description="a markdown file in UTF-8")


def _kind_of_words(given: Any) -> str:
    return "<file>" if isinstance(given, dict | TextFile) else "<text>"


Words = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[TextFile, Tag("<file>")], Discriminator(_kind_of_words)
]


class ComparedModel(Strict):
    """Another model of the same-size comparison. Exactly one of model, results and csv is given."""

    name: Text = Field(description="its name on the card")
    model: Name | None = Field(default=None, description="a model of this config")
    results: FilePath | None = Field(
        default=None, description="a folder with the finished results of a model"
    )
    csv: FilePath | None = Field(
        default=None,
        description="published figures: columns file, one of bytes, gib and gb, humaneval (a share) or kld",
    )
    source: Text | None = Field(default=None, description="the source of the figures in the csv")

    @model_validator(mode="after")
    def _one(self) -> ComparedModel:
        if sum(given is not None for given in (self.model, self.results, self.csv)) != 1:
            raise refuse("not_one", "give it exactly one of model, results and csv")
        if self.csv is not None and self.source is None:
            raise refuse(
                "no_source", "figures of others need their source; say where they are from", "source"
            )
        return self


class Card(Strict):
    """What the model card says beside the measurements."""

    license: Text | None = Field(default=None, description="the licence's identifier, such as apache-2.0")
    base_model: Texts | None = Field(default=None, description="the repository of the original model")
    title: Text | None = Field(default=None, description="the heading; default: the base model and GGUF")
    language: Texts | None = Field(default=None, description="language codes, such as en")
    tags: list[Text] | None = Field(default=None, description="further tags on the Hugging Face hub")
    pipeline_tag: Text | None = Field(default=None, description="the hub's task, such as text-generation")
    library_name: Text | None = Field(default=None, description="the hub's library name")
    datasets: list[Text] | None = Field(default=None, description="repositories of the training data")
    license_name: Text | None = Field(default=None, description="the name of a license `other`")
    license_link: Text | None = Field(default=None, description="the address of a license `other`")
    quantized_by: Text | None = Field(default=None, description="who made the files")
    about: Words | None = Field(default=None, description="why these files were made, in markdown")
    credits: Words | None = Field(default=None, description="acknowledgements, in markdown")
    license_notes: Words | None = Field(
        default=None, description="remarks on the licence, in markdown, at the end"
    )
    contexts: list[Count] | None = Field(
        default=None,
        description="context sizes of the memory tables, in tokens; default: powers of two from 4096",
    )
    same_size: list[ComparedModel] = Field(
        default=[], description="other models, for the same-size comparison"
    )

    @property
    def words(self) -> dict[str, tuple[str, str]]:
        """The publisher's texts by field, each after where it stands. QuantmillError for a broken file."""
        given = {field: getattr(self, field) for field in ("about", "credits", "license_notes")}
        return {
            field: (words.file, _read(Path(words.file))) if isinstance(words, TextFile) else (field, words)
            for field, words in given.items()
            if words is not None
        }


class Publish(Strict):
    """Which files are offered, and the repository that `snakemake publish` uploads them to."""

    repo: PublishedRepository | None = Field(
        default=None, description="organisation/name on the Hugging Face hub; {model} is the model's name"
    )
    ollama: OllamaPlace | None = Field(
        default=None,
        description="organisation/name in Ollama's registry, or with https://host/ before it in another; "
        "each recipe is a tag there; {model} is the model's name",
    )
    modelscope: PublishedRepository | None = Field(
        default=None,
        description="organisation/name of a repository that is on ModelScope; {model} is the model's name",
    )
    private: bool = Field(
        default=False, description="whether a new repository is private; an existing one stays as it is"
    )
    revision: Text = Field(default="main", description="the branch")
    split: Size = Field(
        default="50 GB", description="larger files are split into parts, as llama.cpp does it"
    )
    include: list[Literal["imatrix", "recipes", "measurements", "logs"]] = Field(
        default=["imatrix", "recipes"], description="what is uploaded beside the card and the files"
    )
    withhold: Literal["dominated", "collapsed", "none"] = Field(
        default="none",
        description="which files are not offered: dominated or duplicate ones too, or only collapsed ones",
    )
    overwrite: bool = Field(
        default=False, description="replace files with these names that quantmill did not upload"
    )
    sign: FilePath | None = Field(
        default=None, description="an ssh key to sign lock.json with; its .pub where an agent has the key"
    )
    verify: Literal["all", "sample"] | None = Field(
        default=None,
        description="the files are made again from lock.json before the card is written, all tensors or a "
        "sample of each, and the card says so; `snakemake verify` does it at any time",
    )

    @model_validator(mode="after")
    def _sound(self) -> Publish:
        refuse_twice("include", list(self.include))
        if size_bytes(self.split) < _LEAST_SPLIT:
            raise refuse("small_split", f"{self.split} is too small; give at least 1 MB", "split")
        return self

    @property
    def anywhere(self) -> bool:
        """Whether there is a place to publish in."""
        return bool(self.repo or self.ollama or self.modelscope)

    @property
    def split_bytes(self) -> int:
        """The most bytes of a file."""
        return size_bytes(self.split)


def _read(path: Path) -> str:
    text = read_user_text(path, "give a markdown file in UTF-8")
    if len(text) > _LONGEST_TEXT:
        raise QuantmillError("longer than 64 KiB", path, "a card is read for a minute; shorten it")
    return text
