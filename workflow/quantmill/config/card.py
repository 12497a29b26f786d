"""What the user's file says to those who download: the card's own words, and what is published where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from quantmill.config.fields import (
    Count,
    FilePath,
    Name,
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
    """Another model to compare with by size: one of this file, results elsewhere, or published figures."""

    name: Text = Field(description="as the card shows it")
    model: Name | None = Field(default=None, description="a model of this file")
    results: FilePath | None = Field(default=None, description="folder of a model's results, finished ones")
    csv: FilePath | None = Field(
        default=None, description="columns: file, one of bytes, gib and gb, humaneval (a share) or kld"
    )
    source: Text | None = Field(default=None, description="where the figures of the csv are from")

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
    """What the model card says besides what was measured."""

    license: Text | None = Field(default=None, description="the licence's identifier, such as apache-2.0")
    base_model: Texts | None = Field(default=None, description="repository of the model that was converted")
    title: Text | None = Field(default=None, description="the card's heading; default: the model's name")
    language: Texts | None = Field(default=None, description="codes of the languages, such as en")
    tags: list[Text] | None = Field(default=None, description="tags of the repository")
    pipeline_tag: Text | None = Field(
        default=None, description="the task on the hub, such as text-generation"
    )
    library_name: Text | None = Field(default=None, description="the hub's name of the library")
    datasets: list[Text] | None = Field(default=None, description="repositories of what it was trained on")
    license_name: Text | None = Field(default=None, description="where the license is `other`")
    license_link: Text | None = Field(default=None, description="where the licence's text is")
    quantized_by: Text | None = Field(default=None, description="who made the files")
    about: Words | None = Field(default=None, description="why these files were made, in markdown")
    credits: Words | None = Field(default=None, description="whom to thank, in markdown")
    license_notes: Words | None = Field(default=None, description="what else there is to the licence")
    contexts: list[Count] | None = Field(
        default=None, description="tokens of the memory tables; default: powers of two from 4096"
    )
    same_size: list[ComparedModel] = Field(
        default=[], description="other models, for a comparison of files of the same size"
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
    """Which files are for others, and the repository that `snakemake publish` puts them into."""

    repo: PublishedRepository | None = Field(
        default=None, description="organisation/name on the Hugging Face hub; {model} is the model's name"
    )
    private: bool = Field(default=False, description="of a repository that is made; one that is there stays")
    revision: Text = Field(default="main", description="the branch")
    split: Size = Field(default="50 GB", description="larger files are split, as llama.cpp does it")
    include: list[Literal["imatrix", "recipes", "measurements", "logs"]] = Field(
        default=["imatrix", "recipes"], description="what goes along with the card and the files"
    )
    withhold: Literal["dominated", "collapsed", "none"] = Field(
        default="none", description="files that are not offered: those that another beats, or that collapsed"
    )
    overwrite: bool = Field(
        default=False, description="replace files of these names that quantmill did not put there"
    )

    @model_validator(mode="after")
    def _sound(self) -> Publish:
        refuse_twice("include", list(self.include))
        if size_bytes(self.split) < _LEAST_SPLIT:
            raise refuse("small_split", f"{self.split} is too small; give at least 1 MB", "split")
        return self

    @property
    def split_bytes(self) -> int:
        """The most bytes of a file."""
        return size_bytes(self.split)


def _read(path: Path) -> str:
    text = read_user_text(path, "give a markdown file in UTF-8")
    if len(text) > _LONGEST_TEXT:
        raise QuantmillError("longer than 64 KiB", path, "a card is read for a minute; shorten it")
    return text
