"""The settings of `publish.upload`: what is published of which model, and where."""

from typing import Annotated, NotRequired, TypedDict


class PublishedModel(TypedDict):
    """What is published of a model."""

    repo: str | None
    ollama: NotRequired[Annotated[str, "its place in a registry"]]
    revision: str
    private: bool
    include: list[str]
    overwrite: bool
    split: int
    recipes: list[str]
    signed: Annotated[bool, "whether there is a lock.json.sig"]
    measured: Annotated[list[str], "files of measurements, below `results/<model>/`"]


class Upload(TypedDict):
    """`publish.upload`."""

    confirm: bool
    models: dict[str, PublishedModel]
