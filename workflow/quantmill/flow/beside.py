"""Projectors and the language models that they are used with: that they fit, and what each card names."""

from __future__ import annotations

from pathlib import Path

from quantmill.check.kind import kind_of
from quantmill.config.mtp import whole
from quantmill.config.repositories import owner_of
from quantmill.engine.projector import width_of
from quantmill.errors import QuantmillError
from quantmill.flow.project import Project
from quantmill.formats.ggufio import Header
from quantmill.model.header import read_source


def check(project: Project) -> None:
    """QuantmillError where a model that names a language model is no projector of it.

    What a job fetches or converts is left out, for the file there may be old: libmtmd, which gets both,
    refuses it when it is measured.
    """
    for name, model in project.config.models.items():
        other = model.language_model
        if other is None:
            continue
        where = f"{project.file}: models.{name}.language_model"
        if other not in project.config.models:
            known = ", ".join(project.config.models)
            raise QuantmillError(f"no model {other}", where, f"there are {known}")
        ours, theirs = _header(project, name), _header(project, other)
        if ours is not None and kind_of(ours).name != "projector":
            what = f"{name} is {kind_of(ours).words}, and no projector"
            raise QuantmillError(what, where, "leave this out")
        if ours is None or theirs is None:
            continue
        width, needed = width_of(ours), theirs.number(f"{theirs.architecture}.embedding_length")
        if width != needed:
            what = f"{name} makes vectors of {width} values, and {other} reads ones of {needed}"
            raise QuantmillError(f"{what}: it is another model's projector", where, "name its own")


def files(project: Project, model: str) -> list[str]:
    """The files that a model's files are used with: of a projector its language model's first, of a language
    model those of its projectors.
    """
    models = project.config.models
    other = models[model].language_model
    if other is not None:
        return [f"{other}-{recipe}.gguf" for recipe in whole(project.config.recipes_of(other))[:1]]
    return [f"{name}-{recipe}.gguf" for name, recipe in projectors(project, model)]


def projectors(project: Project, model: str) -> list[tuple[str, str]]:
    """The projectors of a language model, and a recipe of each: their files."""
    return [
        (name, recipe)
        for name, one in project.config.models.items()
        if one.language_model == model
        for recipe in project.config.recipes_of(name)
    ]


def together(project: Project, model: str) -> list[str]:
    """The projectors that are published in a language model's repository, beside its own files."""
    beside = dict.fromkeys(name for name, _ in projectors(project, model))
    return [name for name in beside if owner_of(project.config, name) == model]


def _header(project: Project, model: str) -> Header | None:
    """The header of a model's source; None where a job makes it, where it is not there, or is damaged."""
    if project.config.models[model].source.made:
        return None
    try:
        return read_source(Path(project.source_files(model)[0]))
    except QuantmillError:
        return None
