"""The section `metadata` of config.yaml: what the metadata of the files say of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from quantmill.config.fields import FilePath, Positive, Strict, Text
from quantmill.files import read_user_text

_Share = Annotated[float, Field(ge=0, le=1)]


class Sampling(Strict):
    """Recommended sampling, which llama.cpp takes from the file: `general.sampling.*`."""

    temp: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="the temperature"
    )
    top_k: Annotated[int, Field(ge=0)] | None = Field(default=None, description="0: all tokens")
    top_p: _Share | None = Field(default=None, description="1: all tokens")
    min_p: _Share | None = Field(default=None, description="0: all tokens")
    penalty_repeat: Positive | None = Field(default=None, description="1: none")
    penalty_last_n: Annotated[int, Field(ge=-1)] | None = Field(
        default=None, description="tokens that are penalized; -1: the context"
    )


class Metadata(Strict):
    """What the files' metadata say of the model; what is not said is as in the source.

    Where there is no such section the files have the source's metadata alone, as llama-quantize writes them.
    A change of it writes the files anew from the store and measures nothing again, `chat_template` apart.
    """

    name: Text | None = Field(default=None, description="`general.name`")
    basename: Text | None = Field(default=None, description="`general.basename`, such as Qwen3")
    size_label: Text | None = Field(default=None, description="`general.size_label`, such as 8B or 30B-A3B")
    finetune: Text | None = Field(default=None, description="`general.finetune`, such as Instruct")
    version: Text | None = Field(default=None, description="`general.version`, such as v1.0")
    author: Text | None = Field(default=None, description="`general.author`")
    organization: Text | None = Field(default=None, description="`general.organization`")
    description: Text | None = Field(default=None, description="`general.description`")
    url: Text | None = Field(default=None, description="`general.url`, the model's page")
    card: bool = Field(
        default=True,
        description="also from `card` and `publish`: the licence, languages, tags, quantized_by, the "
        "repository of the files and that of the base model",
    )
    chat_template: FilePath | None = Field(
        default=None, description="a file with a Jinja chat template in place of the source's"
    )
    sampling: Sampling | None = Field(default=None, description="recommended sampling")

    @property
    def template(self) -> str | None:
        """The text of the chat template. QuantmillError where it cannot be read."""
        if self.chat_template is None:
            return None
        return read_user_text(Path(self.chat_template), "give a Jinja chat template in UTF-8")
