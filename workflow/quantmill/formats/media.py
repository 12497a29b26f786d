"""The settings of what is measured on pictures and sounds, a part of specs."""

from typing import Annotated, NotRequired, TypedDict


class Media(TypedDict):
    """`measure.projector`."""

    media: Annotated[list[str], "base names"]
    question: NotRequired[Annotated[str, "asked of the language model about each"]]
