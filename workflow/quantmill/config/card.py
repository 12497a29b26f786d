"""What the user's file says to those who download: the card's own words, and what is published where."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quantmill.config.fields import PublishedRepository, Size, Strict, Text, Texts, size_bytes
from quantmill.config.refusal import refuse, refuse_twice

_LEAST_SPLIT = 10**6


class Card(Strict):
    """What the model card says besides what was measured."""

    license: Text | None = Field(default=None, description="the licence's identifier, such as apache-2.0")
    base_model: Texts | None = Field(default=None, description="repository of the model that was converted")
    title: Text | None = None
    language: Texts | None = None
    tags: list[Text] | None = None
    pipeline_tag: Text | None = None
    about: Text | None = Field(default=None, description="why these files were made")
    credits: Text | None = None


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
