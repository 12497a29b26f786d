"""What specs have of a recipe's field `mtp`, checked as far as the config and a source that is there tell."""

from __future__ import annotations

from pathlib import Path

from quantmill.errors import QuantmillError
from quantmill.flow.project import Project
from quantmill.formats.settings import Mtp
from quantmill.model.header import read_source
from quantmill.recipe import mtp


def of(project: Project, model: str, recipe: str) -> Mtp | None:
    """What the recipe says of the draft head, if anything. QuantmillError for what is wrong with it."""
    given = project.recipe(model, recipe).mtp
    if given is None:
        return None
    where = project.place_of(model, recipe)
    mtp.check(given, project.engine_of(model, recipe), where)
    if not project.config.models[model].source.made:
        try:
            header = read_source(Path(project.source_files(model)[0]))
        except QuantmillError:  # not there, or damaged, of which its own stages say more
            return given
        mtp.check_model(header, given, where)
    return given
