"""The pictures and sounds that a projector is measured on."""

from __future__ import annotations

from quantmill.errors import QuantmillError
from quantmill.flow.project import Project


def media(project: Project, model: str) -> list[str]:
    """Their files. QuantmillError where the model is not measured on any."""
    section = project.config.bench_of(model).projector
    if section is None:
        raise QuantmillError(f"{model} has no projector", project.file, "give it one under bench")
    return section.media
