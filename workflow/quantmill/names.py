"""Which names of files the Hub, llama.cpp, Ollama and LM Studio resolve: their rules, as pure functions.

- The Hub names the quantization of a file by `parseGGUFQuantLabel` of @huggingface/tasks (packages/tasks/
  src/gguf.ts of huggingface.js), for its widgets and the tags of `ollama run hf.co/ORGANISATION/NAME:TAG`,
  where a whole file name is a tag too (huggingface.co/docs/hub/ollama).
- `llama-server -hf ORGANISATION/NAME:TAG` takes the first model of the repository's listing that has the tag
  before a dot or a dash (`find_best_model` of common/download.cpp of llama.cpp); without one Q4_K_M or Q8_0.
- LM Studio lists the files of a repository under the Hub's labels, and is opened with a whole file name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

# In the order of the Hub's enumeration, in which its regular expression tries them.
_LABELS: Final = (
    *("F32", "F16", "Q4_0", "Q4_1", "Q4_1_SOME_F16", "Q4_2", "Q4_3", "Q8_0", "Q5_0", "Q5_1", "Q2_K"),
    *("Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS"),
    *("Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS"),
    *("IQ1_M", "BF16", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4", "Q1_0"),
    *("Q2_K_XL", "Q3_K_XL", "Q4_K_XL", "Q5_K_XL", "Q6_K_XL", "Q8_K_XL"),
)
_LABEL: Final = re.compile(rf"(?:UD-)?(?:{'|'.join(_LABELS)})(?:_[A-Z]+)?")
# Types of tensors, the longer ones first.
_TYPES: Final = (
    *("IQ2_XXS", "IQ3_XXS", "IQ2_XS", "IQ4_NL", "IQ4_XS", "IQ1_S", "IQ3_S", "IQ2_S", "IQ1_M", "TQ1_0"),
    *("TQ2_0", "MXFP4", "NVFP4", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K"),
    *("Q5_K", "Q6_K", "Q8_K", "BF16", "Q1_0", "F32", "F16"),
)
_SHARE: Final = re.compile(rf"(?:(?<=^)|(?<=-))(\d{{1,3}})({'|'.join(_TYPES)})(?=$|[-.])")
_PART: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_NO_MODELS: Final = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_DEFAULTS: Final = ("Q4_K_M", "Q8_0")
_OLLAMA_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")

# Bits per weight of llama.cpp's presets: tools/quantize/README.md of llama.cpp, of Llama 3.1 8B.
_BITS: Final = {
    "IQ1_S": 2.00,
    "IQ1_M": 2.15,
    "IQ2_XXS": 2.38,
    "IQ2_XS": 2.59,
    "IQ2_M": 2.93,
    "Q2_K": 3.16,
    "IQ3_XXS": 3.25,
    "IQ3_M": 3.76,
    "Q3_K_M": 4.00,
    "IQ4_XS": 4.46,
    "Q4_K_M": 4.89,
    "Q5_K_M": 5.70,
    "Q6_K": 6.56,
    "Q8_0": 8.50,
}


def label(path: str) -> str | None:
    """The Hub's label of a file, the last in its path; of a mix such as `55IQ2_XXS-34Q2_K` its largest."""
    upper = path.upper()
    shares = _SHARE.findall(upper.rsplit("/", 1)[-1].removesuffix(".GGUF"))
    if len(shares) > 1:
        return str(max(shares, key=lambda share: int(share[0]))[1])
    labels = _LABEL.findall(upper)
    return labels[-1] if labels else None


def of_draft(recipe: str) -> str:
    """What is wrong with the name of a draft head alone, by which llama.cpp knows such a file."""
    return (
        f"recipe {recipe}: llama-server -hf takes its draft head for a model, and not for the head of one; "
        f"call it mtp-{recipe}"
    )


def is_model(path: str) -> bool:
    """Whether llama.cpp takes a file for a model, by its name."""
    name = path.rsplit("/", 1)[-1]
    return path.endswith(".gguf") and not any(mark in name for mark in _NO_MODELS)


def resolved(paths: Iterable[str], tag: str = "") -> str | None:
    """The file that `llama-server -hf repository:tag` takes of a repository with these files."""
    models = [path for path in sorted(paths) if is_model(path)]
    models = [path for path in models if not (part := _PART.search(path)) or int(part[1]) == 1]
    for wanted in [tag] if tag else _DEFAULTS:
        try:
            pattern = re.compile(f"{wanted}[.-]", re.IGNORECASE)
        except re.error:
            return None
        for path in models:
            if pattern.search(path):
                return path
    return None if tag or not models else models[0]


def llama_tag(path: str, name: str, paths: Sequence[str]) -> str | None:
    """A tag by which llama.cpp takes this file of a repository: its label, else its recipe's name; None where
    neither does.
    """
    return next((tag for tag in (label(path), name) if tag and resolved(paths, tag) == path), None)


def ollama_tag(path: str, paths: Iterable[str]) -> str | None:
    """A tag by which Ollama takes this file from the Hub: its label where no other has it, else its name."""
    own = label(path)
    if own is not None and [label(other) for other in paths].count(own) == 1:
        return own
    name = path.rsplit("/", 1)[-1]
    return name if _OLLAMA_TAG.fullmatch(name) else None


def nearest(bits: float) -> str:
    """The preset of about so many bits per weight."""
    return min(_BITS, key=lambda preset: abs(_BITS[preset] - bits))


def remarks(files: Mapping[str, str], presets: Mapping[str, str]) -> list[str]:
    """What is wrong with the names of a repository's files, a line each, with a better name of the recipe.

    `files` are the paths by recipe; `presets` what preset a recipe's file is like, where that is known.
    """
    labels, lines = {recipe: label(path) for recipe, path in files.items()}, []
    for recipe, path in files.items():
        own = labels[recipe]
        same = [files[other] for other in files if labels[other] == own and other != recipe]
        if not is_model(path):
            mark = next(mark for mark in _NO_MODELS if mark in path.rsplit("/", 1)[-1])
            lines.append(f"{path}: llama.cpp takes no file with `{mark}` in its name for a model; rename it")
        elif own is None:
            what = f"{path}: the Hub, Ollama and LM Studio know no quantization by that name"
            preset = presets.get(recipe, "Q4_K_M")
            better = _lettered(recipe, preset) if preset in labels.values() else f"{recipe}-{preset}"
            lines.append(f"{what}; call the recipe such as {better}")
        elif same and recipe != own:
            what = f"{path}: its label on the Hub and for Ollama, {own}, is that of {same[0]} too"
            first = f"`llama-server -hf` takes {resolved(files.values(), own)} for it"
            lines.append(f"{what}, and {first}; call the recipe such as {_lettered(recipe, own)}")
    return lines


def _lettered(recipe: str, preset: str) -> str:
    """A name with a label of its own: the preset's, and the first letters of the recipe's beside it."""
    letters = re.search(r"[A-Z]+", recipe.upper().replace(preset, ""))
    return f"{preset.removeprefix('UD-')}_{letters[0] if letters else 'X'}"
