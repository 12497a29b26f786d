"""The report of what is measured of a projector, `bench/<row>/projector.json`."""

from typing import Annotated, Final, NotRequired, TypedDict

from quantmill.formats.report import Report
from quantmill.formats.statistics import Distribution, Mean


class Medium(TypedDict):
    """A picture or a sound."""

    file: str
    vectors: Annotated[int, "that the language model reads in its place"]


MOST_ANSWERED: Final = 64
"""Tokens of an answer at most."""


class MediumAnswered(TypedDict):
    """What the language model answers about a picture or a sound, with the source's vectors of it."""

    file: str
    tokens: Annotated[int, "64 at most; the one that ended it is counted"]
    text: str


class Answered(TypedDict):
    """How far the answers' tokens diverge with a file's vectors, through one language model."""

    question: str
    language_model: Annotated[str, "base name of its GGUF"]
    answers: list[MediumAnswered]
    kld: Annotated[Distribution, "nats, over the tokens of all answers"]
    same_top: Annotated[Mean, "share of tokens for which both rank the same one first"]
    by_token: list[float]


class Projected(TypedDict):
    """How far a projector's vectors of pictures and sounds are from the source's."""

    media: list[Medium]
    width: int
    distance: Annotated[Distribution, "1 less the cosine, over the vectors"]
    relative_error: Annotated[Mean, "the length of the change over that of the vector"]
    by_vector: Annotated[list[float], "the distance of each"]
    answer: NotRequired[Annotated[Answered, "where a question is asked"]]
    seconds: float
    model_sha256: str
    reference_sha256: str


PROJECTED: Final = Report[Projected](
    "bench/<row>/projector.json",
    "measure.projector",
    (Projected,),
    "Of multimodal projectors. In `bench/source/` the source beside itself: 0.",
)
