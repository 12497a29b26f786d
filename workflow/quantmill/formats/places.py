"""The settings of `publish.upload`: what is published of which model, and where."""

from typing import Annotated, NotRequired, TypedDict


class PublishedFiles(TypedDict):
    """What is published of a model, and where."""

    repo: str | None
    ollama: NotRequired[Annotated[str, "its place in a registry"]]
    modelscope: NotRequired[Annotated[str, "its repository there"]]
    revision: str
    private: bool
    include: list[str]
    overwrite: bool
    split: int
    recipes: list[str]
    signed: Annotated[bool, "whether there is a lock.json.sig"]
    measured: Annotated[list[str], "files of measurements, below `results/<model>/`"]


class PublishedModel(PublishedFiles):
    """The same, with the projectors that are in its repository."""

    together: NotRequired[dict[str, PublishedFiles]]


class Upload(TypedDict):
    """`publish.upload`."""

    confirm: bool
    models: dict[str, PublishedModel]
