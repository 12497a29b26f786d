"""The check of a finished file: `checks/<recipe>.json`."""

from typing import Annotated, Final, Literal, NotRequired, TypedDict

from quantmill.formats.general import Plain
from quantmill.formats.report import Report

RoundTrip = Literal["lossless", "lossless in ASCII", "lossy", "none"]
"""Whether texts come back from their tokens; `none` where there is no tokenizer, or the file fails."""


class CheckedFile(TypedDict):
    """The settings of `check.file`."""

    engine: NotRequired[str]


class CheckedTemplate(TypedDict):
    """What the chat template takes."""

    system: Annotated[
        Literal["takes", "joined"],
        "joined: it refuses a system message or leaves it out, and engines join that to the first question",
    ]
    tools: Annotated[Literal["takes", "leaves out", "refuses"], "a list of tools"]


class CheckedAnswer(TypedDict):
    """The likeliest answer to a question, by the file's own chat template where it has one."""

    prompt: Annotated[int, "tokens of the question as the template has it"]
    tokens: Annotated[int, "of the answer, 16 at most"]
    text: str
    ended: Annotated[bool, "whether the model ended it"]


class Checks(TypedDict):
    """What was found in a finished file."""

    file: str
    sha256: str
    tensors: int
    bytes: Annotated[int, "of all tensors, every block looked at by ggml_validate_row_data"]
    tokenizer: Annotated[RoundTrip, "whether a text comes back from its tokens, a space at its start apart"]
    sampling: Annotated[
        dict[str, Plain], "recommended: `general.sampling.*` of the file, by the ends of the keys"
    ]
    template: Annotated[CheckedTemplate | None, "null: the file has no chat template, or a broken one"]
    tried: Annotated[
        Literal["asked", "evaluated", "loaded", "read"],
        "how far the file was tried. asked: llama.cpp answered a question by it; evaluated: its engine "
        "evaluated a few tokens (kinds that predict no text, files of ik or without a tokenizer); loaded: "
        "its engine loaded it (draft models, speech, kinds that ik does not evaluate); read: its header was "
        "read back (projectors; of engine ik files with multi-token prediction)",
    ]
    answer: Annotated[CheckedAnswer | None, "null where the file is not asked, or fails"]
    failures: Annotated[list[str], "what is wrong and where, a line each; empty: the file is sound"]


CHECKS: Final = Report[Checks](
    "checks/<recipe>.json",
    "check.file",
    (Checks,),
    "The check of a finished file. A file that fails is named on the card, and the run ends in an error.",
)
