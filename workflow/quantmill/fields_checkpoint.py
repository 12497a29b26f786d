"""A checkpoint in the user's file: only exported, by plain recipes of the template `mfp4`, and never run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from quantmill.errors import QuantmillError
from quantmill.fields import Folder, Strict
from quantmill.refusal import refuse

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class CheckpointSource(Strict):
    """A Hugging Face checkpoint on this machine: a folder with config.json and safetensors."""

    checkpoint: Folder

    @property
    def files(self) -> list[Path]:
        """Its files, in the order of their names; hidden ones and folders in it left out."""
        files = (path for path in sorted(Path(self.checkpoint).iterdir()) if path.is_file())
        return [path for path in files if not path.name.startswith(".")]


def check_recipes(where: str, fields: Set[str], recipes: Iterable[BaseModel]) -> None:
    """Refuse what a checkpoint cannot have: `fields` are those given to the model at `where`."""
    for field in sorted(fields - {"source", "card", "recipes"}):
        text = "a checkpoint is exported and not run; leave this out"
        raise refuse("only_exported", text, f"{where}.{field}")
    for recipe in recipes:
        given = recipe.model_dump(exclude_unset=True)
        if given.keys() != {"name", "template"} or given["template"] != "mfp4":
            text = (
                f"{given['name']} is no recipe for a checkpoint; give it {{name: ..., template: mfp4}} alone"
            )
            raise refuse("not_mfp4", text, f"{where}.recipes")


def check_folders(models: Mapping[str, Any], file: str) -> None:
    """Refuse a checkpoint that is not there, before any work starts."""
    for name, source in ((name, model.source) for name, model in models.items()):
        if isinstance(source, CheckpointSource) and not (Path(source.checkpoint) / "config.json").is_file():
            what = f"no config.json in {source.checkpoint}"
            raise QuantmillError(what, f"{file}: models.{name}.source.checkpoint", "check the path")


def of_ggufs(config: ConfigT) -> ConfigT:
    """The config without its checkpoints, of which nothing is made but their export."""
    models: Mapping[str, Any] = config.models  # type: ignore[attr-defined]
    kept = {name: m for name, m in models.items() if not isinstance(m.source, CheckpointSource)}
    return config.model_copy(update={"models": kept})
