"""What becomes of the tokens that a draft head proposes (multi-token prediction)."""

from typing import Annotated, Final, TypedDict

from quantmill.formats.report import Report


class Accepted(TypedDict):
    """Drafts of one length."""

    length: Annotated[int, "tokens of each draft"]
    drafted: Annotated[int, "tokens"]
    accepted: Annotated[int, "of these, by the model"]


class Draft(Accepted):
    """The same of texts that the model writes. A step writes what it accepts of a draft and one more."""

    steps: int
    drafted_by_chunk: list[int]
    accepted_by_chunk: list[int]


class Drafts(TypedDict):
    """What the model accepts of its draft head's tokens."""

    corpus: str
    chunks: Annotated[int, "the first half of each is a prompt, which the model continues greedily"]
    context: int
    type: Annotated[str | None, "that holds the most bytes of the head; null: the file has no head"]
    written: Annotated[int, "tokens that the model wrote and at which drafts were tried"]
    lengths: Annotated[list[Draft], "empty where the file has no head"]
    seconds: float
    model_sha256: str


DRAFTS: Final = Report[Drafts](
    "bench/<row>/draft.json",
    "measure.draft",
    (Drafts,),
    "Of models with a draft head (multi-token prediction).",
)
