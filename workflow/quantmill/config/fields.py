"""What the fields of the user's file may be: names, files, sizes, and mappings that take no unknown field."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from quantmill.config.refusal import refuse

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_UNITS = {f"{prefix}B": 1000**power for prefix, power in _POWERS.items()}
_UNITS |= {f"{prefix}iB": 1024**power for prefix, power in _POWERS.items() if prefix}

# A config is shared and shown; whoever finds a token in it can write to its owner's repositories.
_SECRETS = ("token", "hf_token", "HF_TOKEN", "api_key")
_NO_SECRETS = (
    "a token does not belong in the config; remove it here, run `hf auth login` once or set HF_TOKEN,"
    " and renew it if the file was ever shared"
)

# Names become the names of files: no separators, no spaces, no `..`.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_+-]*(\.[A-Za-z0-9_+-]+)*$"
_PACKAGE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_FILE = r"^[^{}\x00-\x1f]+$"  # braces would be Snakemake's wildcards
_GGUF = r"^[^{}\x00-\x1f]+\.(gguf|tsv)$"
_INSIDE = r"^[^/{}\x00-\x1f][^{}\x00-\x1f]*\.gguf$"
_REPOSITORY = r"^[\w.-]+/[\w.-]+$"
_PUBLISHED = r"^[\w.-]+/([\w.-]|\{model\})+$"
_OLLAMA = r"^(https?://[\w.-]+(:\d+)?/)?[\w-]+/([\w.-]|\{model\})+$"
_COMMIT = r"^[0-9a-f]{40}$"
_LONGEST_NAME = 255 - len(".00000000.part")  # bytes that a file system takes, beside a writer's own
_SIZE = r"^[0-9]+(\.[0-9]+)? ?(B|[KMGT]i?B)$"
HINTS = {
    _NAME: "names become file names: letters, digits and . _ + - between them",
    _PACKAGE: "give the name by which the package is imported",
    _FILE: "give a path without braces and line breaks; a link to it with another name will do",
    _GGUF: "a .gguf file is expected, or a manifest.tsv to plan from, and no braces in its path",
    _INSIDE: "a .gguf file is expected, relative to the package or repository, and no braces in its path",
    _REPOSITORY: "a repository is organisation/name",
    _PUBLISHED: "a repository is organisation/name; {model} in the name stands for the model's",
    _OLLAMA: "a place in a registry is organisation/name, with http(s)://host/ before it where it is not "
    "Ollama's own; {model} in the name stands for the model's",
    _COMMIT: "give the whole commit, 40 hexadecimal digits",
    _SIZE: "a size is a number and its unit, such as 50 GiB",
}


def expand(path: str) -> str:
    """`path` with `~` as the home folder; absolute where it would look like a command's option."""
    if any(len(part.encode()) > _LONGEST_NAME for part in path.split("/")):
        raise refuse(
            "long_name", f"a name in {path[:40]}... is longer than {_LONGEST_NAME} bytes; shorten it"
        )
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not path.isascii():
        text = f"{path} cannot be named in the locale's {encoding}; export PYTHONUTF8=1"
        raise refuse("no_utf8", text)
    if path.startswith("-"):
        return str(Path.cwd() / path)
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        user = path.split("/")[0]
        text = f"{user} is no user's home folder; write ./{user} for a folder of that name"
        raise refuse("no_home", text) from None


def inside(path: str) -> str:
    """A path that stays in its folder, and whose parts a file can have as names."""
    if any(part in ("", ".", "..") or len(part.encode()) > _LONGEST_NAME for part in path.split("/")):
        text = f"{path[:80]} is no path within a folder; give one without . and .., of names of up to"
        raise refuse("not_inside", f"{text} {_LONGEST_NAME} bytes")
    return path


Name = Annotated[str, StringConstraints(pattern=_NAME, max_length=100)]
Text = Annotated[str, StringConstraints(min_length=1)]
Texts = Text | Annotated[list[Text], Field(min_length=1)]
Package = Annotated[str, StringConstraints(pattern=_PACKAGE)]
FilePath = Annotated[str, StringConstraints(pattern=_FILE), AfterValidator(expand)]
GgufPath = Annotated[str, StringConstraints(pattern=_GGUF), AfterValidator(expand)]
GgufFile = Annotated[str, StringConstraints(pattern=_INSIDE), AfterValidator(inside)]
Repository = Annotated[str, StringConstraints(pattern=_REPOSITORY)]
PublishedRepository = Annotated[str, StringConstraints(pattern=_PUBLISHED)]
OllamaPlace = Annotated[str, StringConstraints(pattern=_OLLAMA)]
Commit = Annotated[str, StringConstraints(pattern=_COMMIT)]
Size = Annotated[str, StringConstraints(pattern=_SIZE)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def size_bytes(size: str) -> int:
    """The bytes of a `Size`, such as `1.5 GiB` or `50 MB`."""
    number, unit = re.fullmatch(r"([0-9.]+) ?(\w+)", size).groups()  # type: ignore[union-attr]
    return int(float(number) * _UNITS[unit])


class Strict(BaseModel):
    """A mapping whose fields are all known and take no other type than their own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, given: Any) -> Any:
        """Refuse an unknown field by its name, with the field that was probably meant."""
        if isinstance(given, dict) and cls.model_config.get("extra") == "forbid":
            known = [info.alias or name for name, info in cls.model_fields.items()]
            for field in given:
                if field in _SECRETS:
                    raise refuse("secret", _NO_SECRETS, str(field))
                if field not in known:
                    near = difflib.get_close_matches(str(field), known, 1)
                    cure = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
                    raise refuse("unknown_field", f"unknown field; {cure}", str(field))
        return given
