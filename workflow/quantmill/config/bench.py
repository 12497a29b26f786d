"""What the user's file says is to be measured: chunks of a corpus, probes, speed."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, model_validator

from quantmill.config.corpora import Chunks
from quantmill.config.fields import Count, Positive, Strict, Text
from quantmill.config.refusal import refuse_twice

POOL: Final = ("q2_K", "iq2_s", "iq3_xxs", "iq3_s", "q3_K", "iq4_xs", "q4_K", "q5_K", "q6_K", "q8_0")
"""The types compared where the user names none: the k- and i-quants from 2.6 to 8.5 bits."""


class Probes(Chunks):
    """What each tensor is worth: the KLD of the model with one tensor at one type, on a corpus of its own."""

    chunks: Count = 12
    minutes: Positive = Field(
        default=30.0, description="time for probes; what they do not reach is predicted"
    )
    types: Annotated[list[Text], Field(min_length=1)] = Field(
        default=list(POOL), description="the pool of ggml types"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Probes:
        refuse_twice("types", self.types)
        return self


class Speed(Strict):
    """llama-bench's pp and tg: tokens of the prompt, tokens generated, repetitions."""

    prompt: Count = 512
    generate: Count = 128
    repetitions: Count = 5


class Bench(Strict):
    """What is measured of each file, the source among them."""

    kld: Chunks | None = Field(default=None, description="KL divergence from the source's predictions")
    perplexity: Chunks | None = None
    speed: Speed | None = None

    @property
    def chunked(self) -> dict[str, Chunks]:
        """What is measured on chunks of a corpus, by its field."""
        fields = {"kld": self.kld, "perplexity": self.perplexity}
        return {field: chunks for field, chunks in fields.items() if chunks is not None}
