"""Which models share a repository: a language model and its projectors, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantmill.config.refusal import refuse
from quantmill.config.source import of_ggufs

if TYPE_CHECKING:
    from quantmill.config.file import Config


def owner_of(config: Config, model: str) -> str:
    """The model whose repository, and card there, a model's files are in: the model itself, or a projector's
    language model where both name one repository.
    """
    other, repo = config.models[model].language_model, config.repository_of(model)
    shared = repo is not None and other in config.models and config.repository_of(other or "") == repo
    return other if shared and other else model


def check_repositories(config: Config) -> None:
    """A repository is of one model, with its projectors: it has one card, and one branch of it is written."""
    seen: dict[str, str] = {}
    ggufs = of_ggufs(config)
    for name in filter(ggufs.recipes_of, ggufs.models):
        repo, owner = config.repository_of(name), owner_of(config, name)
        where = f"{f'models.{name}.' if config.models[name].publish else ''}publish"
        if repo is not None and seen.setdefault(repo, owner) != owner:
            text = f"{repo} is {seen[repo]}'s too; give each its own, with {{model}} in the name"
            raise refuse("one_repository", text, f"{where}.repo")
        branch = config.publish_of(owner).revision
        if repo is not None and config.publish_of(name).revision != branch:
            text = f"{owner}, with which it shares {repo}, is in the branch {branch}; give both the same"
            raise refuse("one_branch", text, f"{where}.revision")
