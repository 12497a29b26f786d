"""What the user's file says to the readers of the card."""

from __future__ import annotations

from pydantic import Field

from quantmill.config.fields import Strict, Text, Texts


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
