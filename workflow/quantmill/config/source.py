"""Where a model comes from: a GGUF, or a checkpoint, which is exported or converted to a GGUF."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Discriminator, Field, Tag

from quantmill.config.fields import Commit, FilePath, GgufFile, GgufPath, Package, Repository, Strict, Text
from quantmill.config.refusal import refuse
from quantmill.errors import QuantmillError

_SHARD = re.compile(r"-00001-of-(\d{5})\.gguf$")
ConfigT = TypeVar("ConfigT", bound=BaseModel)


class PackageSource(Strict):
    """A GGUF that an installed Python package holds."""

    package: Package
    file: GgufFile


class PathSource(Strict):
    """A GGUF on this machine; of a split one, its first file (-00001-of-0000N.gguf).

    For plans alone its header will do, or a manifest.tsv with model.json beside it.
    """

    path: GgufPath


class HubSource(Strict):
    """A GGUF of a Hugging Face repository, pinned by the commit."""

    hf: Repository
    file: GgufFile
    revision: Commit


class CheckpointSource(Strict):
    """A Hugging Face checkpoint on this machine: a folder with config.json and safetensors."""

    checkpoint: FilePath
    to: Literal["auto", "f16", "bf16"] = Field(
        default="auto", description="what it is converted to; auto: as the checkpoint has it"
    )
    keep: bool = Field(default=True, description="false: the GGUF goes once all is made from it")
    pre_tokenizer: Text | None = Field(
        default=None, description="llama.cpp's name of it, where the converter does not know it: qwen2, ..."
    )

    @property
    def files(self) -> list[Path]:
        """Its files, in the order of their names; hidden ones and folders in it left out."""
        files = (path for path in sorted(Path(self.checkpoint).iterdir()) if path.is_file())
        return [path for path in files if not path.name.startswith(".")]


def _kind_of_source(given: Any) -> str:
    keys = given if isinstance(given, dict) else vars(given) if isinstance(given, BaseModel) else ()
    return next((kind for kind in ("<package>", "<hf>", "<checkpoint>") if kind[1:-1] in keys), "<path>")


Source = Annotated[
    Annotated[PackageSource, Tag("<package>")]
    | Annotated[HubSource, Tag("<hf>")]
    | Annotated[CheckpointSource, Tag("<checkpoint>")]
    | Annotated[PathSource, Tag("<path>")],
    Discriminator(_kind_of_source),
]


def source_files(source: Source, model: str, results: str) -> list[Path]:
    """The files of a model's source, all parts of a split one.

    Those of a Hugging Face source lie below the results, where they are fetched
    to, as does what a checkpoint is converted to. QuantmillError where a package
    is not installed.
    """
    if isinstance(source, CheckpointSource):
        return [Path(results) / model / "source" / f"{model}.gguf"]
    if isinstance(source, HubSource):
        first = Path(results) / model / "source" / source.file
    elif isinstance(source, PathSource):
        first = Path(source.path)
    else:
        # The package is only looked up: importing it would run its code.
        found = importlib.util.find_spec(source.package)
        if found is None or not found.submodule_search_locations:
            raise QuantmillError(
                f"no package {source.package} is installed",
                f"models.{model}.source.package",
                "install it, or name a file with path:",
            )
        first = Path(found.submodule_search_locations[0]) / source.file
    if first.suffix == ".tsv":
        return [first, first.with_name("model.json")]
    split = _SHARD.search(first.name)
    if split is None:
        return [first]
    stem, count = first.name[: split.start()], int(split[1])
    return [first.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]


def exported(recipe: Any) -> bool:
    """Whether a recipe makes a checkpoint of a checkpoint, and no GGUF."""
    return getattr(recipe, "template", None) == "mfp4" and recipe.form != "gguf"


def calibrated(recipe: Any) -> bool:
    """Whether an exported checkpoint's activations become NVFP4 too, for which it is run as a GGUF."""
    return exported(recipe) and recipe.scheme == "W4A4"


def check_recipes(where: str, model: Any, recipes: Iterable[BaseModel]) -> None:
    """Refuse what a checkpoint cannot have; `where` is the model's place in the file."""
    recipes = list(recipes)
    if all(exported(recipe) for recipe in recipes):
        run = any(map(calibrated, recipes))
        text = "a checkpoint that is exported alone is not measured; leave this out"
        for field in sorted(model.model_fields_set - {"source", "card", "recipes", *(["imatrix"] * run)}):
            raise refuse("only_exported", text, f"{where}.{field}")
        text = "nothing is converted to a GGUF, for all recipes export the checkpoint; leave this out"
        for field in [] if run else sorted(model.source.model_fields_set - {"checkpoint"}):
            raise refuse("only_exported", text, f"{where}.source.{field}")
    for recipe in filter(exported, recipes):
        given = recipe.model_dump(exclude_unset=True)
        if not given.keys() <= {"name", "template", "form", "scheme"}:
            text = f"{given['name']} exports the checkpoint; give it name, template, form and scheme alone"
            raise refuse("not_mfp4", text, f"{where}.recipes")


def check_folders(models: Mapping[str, Any], file: str) -> None:
    """Refuse a checkpoint that is not there, before any work starts."""
    for name, source in ((name, model.source) for name, model in models.items()):
        if isinstance(source, CheckpointSource) and not (Path(source.checkpoint) / "config.json").is_file():
            what = f"no config.json in {source.checkpoint}"
            raise QuantmillError(what, f"{file}: models.{name}.source.checkpoint", "check the path")


def of_ggufs(config: ConfigT) -> ConfigT:
    """The config of what is about GGUFs: checkpoints without what exports them, or not at all.

    One that is exported alone is there, without a recipe, where it is calibrated.
    """
    kept: dict[str, Any] = {}
    for name, model in config.models.items():  # type: ignore[attr-defined]
        if not isinstance(model.source, CheckpointSource):
            kept[name] = model
            continue
        given = model.recipes or config.recipes or []  # type: ignore[attr-defined]
        left = [recipe for recipe in given if not exported(recipe)]
        if left or any(map(calibrated, given)):
            kept[name] = model.model_copy(update={"recipes": left})
    return config.model_copy(update={"models": kept})


def exports(config: Any) -> dict[str, dict[str, Any]]:
    """The recipes that export a checkpoint, by model and name."""
    found = {
        name: {key: recipe for key, recipe in config.recipes_of(name).items() if exported(recipe)}
        for name, model in config.models.items()
        if isinstance(model.source, CheckpointSource)
    }
    return {name: recipes for name, recipes in found.items() if recipes}
