"""Where a model comes from: a GGUF, or a checkpoint, which is exported or converted to a GGUF."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Discriminator, Field, Tag

from quantmill import spec
from quantmill.config.fields import Commit, FilePath, GgufFile, GgufPath, Package, Repository, Strict, Text
from quantmill.config.refusal import refuse
from quantmill.errors import QuantmillError

_SHARD = re.compile(r"-00001-of-(\d{5})\.gguf$")
ConfigT = TypeVar("ConfigT", bound=BaseModel)


class _Source(Strict):
    """What every kind of source answers."""

    fetched: ClassVar[bool] = False
    """Whether a job downloads its files into the results."""
    converted: ClassVar[bool] = False
    """Whether a job makes its GGUF from a checkpoint."""

    @property
    def made(self) -> bool:
        """Whether a job makes its files, so that they need not be there yet."""
        return self.fetched or self.converted

    @property
    def stays(self) -> bool:
        """Whether its GGUF stays in the results after everything is made from it."""
        return False

    @property
    def origin(self) -> str:
        """Where its file is from, in words for the card; empty where the user alone knows."""
        return ""

    def files(self, model: str, results: str) -> list[Path]:
        """Its GGUF files, all parts of a split one; those that a job makes lie in the results.

        QuantmillError where a package is not installed.
        """
        raise NotImplementedError

    def identity(self, of_files: Callable[[], str], of_conversion: Callable[[], str]) -> str:
        """The digest that stands for its contents: `of_files` unless a job makes them."""
        return of_files()


class PackageSource(_Source):
    """A GGUF that an installed Python package holds."""

    package: Package = Field(description="the name by which the package is imported")
    file: GgufFile = Field(description="the GGUF's path in the package")

    @property
    def origin(self) -> str:
        return f"of the Python package {self.package}"

    def files(self, model: str, results: str) -> list[Path]:
        # The package is only looked up: importing it would run its code.
        package = importlib.util.find_spec(self.package)
        if package is None or not package.submodule_search_locations:
            raise QuantmillError(
                f"no package {self.package} is installed",
                f"models.{model}.source.package",
                "install it, or name a file with path:",
            )
        return _parts(Path(package.submodule_search_locations[0]) / self.file)


class PathSource(_Source):
    """A GGUF on this machine; of a split one, its first file (-00001-of-0000N.gguf).

    For plans alone its header will do, or a manifest.tsv with model.json beside it.
    """

    path: GgufPath = Field(description="the GGUF; of a split one the first file")

    def files(self, model: str, results: str) -> list[Path]:
        first = Path(self.path)
        return [first, first.with_name("model.json")] if first.suffix == ".tsv" else _parts(first)


class HubSource(_Source):
    """A GGUF of a Hugging Face repository, pinned by the commit."""

    fetched: ClassVar[bool] = True

    hf: Repository = Field(description="organisation/name on the Hugging Face hub")
    file: GgufFile = Field(description="the GGUF's path in the repository, of a split one the first file")
    revision: Commit = Field(description="the whole commit, 40 hexadecimal digits")

    @property
    def origin(self) -> str:
        return f"of {self.hf} at {self.revision[:12]}"

    def files(self, model: str, results: str) -> list[Path]:
        return _parts(Path(results) / model / "source" / self.file)

    def identity(self, of_files: Callable[[], str], of_conversion: Callable[[], str]) -> str:
        # The commit names the bytes; they need not be there.
        return spec.digest(self.model_dump())


class CheckpointSource(_Source):
    """A Hugging Face checkpoint on this machine: a folder with config.json and safetensors."""

    converted: ClassVar[bool] = True

    checkpoint: FilePath = Field(description="the folder that holds config.json and the safetensors")
    to: Literal["auto", "f16", "bf16"] = Field(
        default="auto", description="the type of the converted GGUF; auto: as in the checkpoint"
    )
    keep: bool = Field(default=True, description="false: the GGUF is deleted when everything is made from it")
    pre_tokenizer: Text | None = Field(
        default=None, description="its name in llama.cpp, such as qwen2, if the converter does not know it"
    )

    projector: bool = Field(
        default=False,
        description="true: its projector of pictures or sounds (mmproj), not the language model",
    )

    @property
    def stays(self) -> bool:
        return self.keep

    @property
    def origin(self) -> str:
        name = Path(self.checkpoint).resolve().name
        part = "the projector of " if self.projector else ""
        return f"made of {part}the checkpoint {name} by llama.cpp's own converter"

    @property
    def checkpoint_files(self) -> list[Path]:
        """The checkpoint's own files, by name; hidden ones and folders are left out."""
        files = (path for path in sorted(Path(self.checkpoint).iterdir()) if path.is_file())
        return [path for path in files if not path.name.startswith(".")]

    def files(self, model: str, results: str) -> list[Path]:
        return [Path(results) / model / "source" / f"{model}.gguf"]

    def identity(self, of_files: Callable[[], str], of_conversion: Callable[[], str]) -> str:
        return of_conversion()


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


def _parts(first: Path) -> list[Path]:
    """All files of a split GGUF by the first one's name; else the file itself."""
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
        if (rounding := given.get("rounding", "nearest")) != "nearest":
            name = given["name"]
            text = f"{name} exports the checkpoint, for which there is no {rounding}; leave rounding out"
            raise refuse("rounded_export", text, f"{where}.recipes")
        if not given.keys() <= {"name", "template", "form", "scheme"}:
            text = f"{given['name']} exports the checkpoint; give it name, template, form and scheme alone"
            raise refuse("not_mfp4", text, f"{where}.recipes")


def check_folders(models: Mapping[str, Any], file: str) -> None:
    """Refuse a checkpoint that is not there, before any work starts."""
    for name, source in checkpoints(models).items():
        if not (Path(source.checkpoint) / "config.json").is_file():
            what = f"no config.json in {source.checkpoint}"
            raise QuantmillError(what, f"{file}: models.{name}.source.checkpoint", "check the path")


def checkpoints(models: Mapping[str, Any]) -> dict[str, CheckpointSource]:
    """The sources that are checkpoints, by the model's name."""
    return {name: model.source for name, model in models.items() if model.source.converted}


def of_ggufs(config: ConfigT) -> ConfigT:
    """The config of what is about GGUFs: checkpoints without what exports them, or not at all.

    One that is exported alone is there, without a recipe, where it is calibrated.
    """
    models: dict[str, Any] = {}
    for name, model in config.models.items():  # type: ignore[attr-defined]
        if not model.source.converted:
            models[name] = model
            continue
        given = model.recipes or config.recipes or []  # type: ignore[attr-defined]
        left = [recipe for recipe in given if not exported(recipe)]
        if left or any(map(calibrated, given)):
            models[name] = model.model_copy(update={"recipes": left})
    return config.model_copy(update={"models": models})


def exports(config: Any) -> dict[str, dict[str, Any]]:
    """The recipes that export a checkpoint, by model and name."""
    recipes = {
        name: {key: recipe for key, recipe in config.recipes_of(name).items() if exported(recipe)}
        for name in checkpoints(config.models)
    }
    return {name: exports for name, exports in recipes.items() if exports}
