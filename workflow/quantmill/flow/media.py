"""What a projector is measured on: pictures and sounds, and a question about them."""

from __future__ import annotations

from quantmill.config.bench import Media
from quantmill.errors import QuantmillError
from quantmill.flow.project import Project


def media(project: Project, model: str) -> list[str]:
    """Their files. QuantmillError where the model is not measured on any."""
    return _section(project, model).media


def question(project: Project, model: str) -> str | None:
    """What its language model is asked about each, if anything. QuantmillError where none is named."""
    asked = _section(project, model).question
    if asked is not None and project.config.models[model].language_model is None:
        what = f"{model} has no language_model that could answer"
        raise QuantmillError(what, f"{project.file}: bench.projector.question", "name it beside source")
    return asked


def loaded(project: Project, model: str) -> list[str]:
    """What measuring a projector takes memory for: its source, and where a question is asked that of its
    language model.
    """
    other = project.config.models[model].language_model if question(project, model) else None
    return [*project.source_files(model), *(project.source_files(other) if other else [])]


def _section(project: Project, model: str) -> Media:
    section = project.config.bench_of(model).projector
    if section is None:
        raise QuantmillError(f"{model} has no projector", project.file, "give it one under bench")
    return section
