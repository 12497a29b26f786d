"""What the user's file says is to be measured: chunks of a corpus, probes, speed."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, model_validator

from quantmill.config.corpora import Chunks
from quantmill.config.fields import Count, Name, Positive, Strict, Text
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


class Workload(Strict):
    """What a client asks of a server: tokens of the prompt, tokens generated."""

    name: Name
    prompt: Count = 32
    generate: Annotated[int, Field(ge=2)]


class Served(Strict):
    """Speed behind a server, as a client sees it."""

    workloads: Annotated[list[Workload], Field(min_length=1)] = Field(
        default=[
            Workload(name="short-question", prompt=32, generate=64),
            Workload(name="answer", prompt=32, generate=300),
            Workload(name="long-answer", prompt=32, generate=900),
            Workload(name="long-prompt", prompt=6000, generate=64),
        ]
    )
    repetitions: Count = 3
    server: Text | None = Field(default=None, description="a llama-server; default: llama-cpp-python's own")

    @model_validator(mode="after")
    def _distinct(self) -> Served:
        refuse_twice("workloads", [workload.name for workload in self.workloads])
        return self


class Bench(Strict):
    """What is measured of each file, the source among them."""

    kld: Chunks | None = Field(default=None, description="KL divergence from the source's predictions")
    perplexity: Chunks | None = None
    speed: Speed | None = None
    served: Served | None = Field(default=None, description="speed behind a server")

    @property
    def chunked(self) -> dict[str, Chunks]:
        """What is measured on chunks of a corpus, by its field."""
        fields = {"kld": self.kld, "perplexity": self.perplexity}
        return {field: chunks for field, chunks in fields.items() if chunks is not None}
