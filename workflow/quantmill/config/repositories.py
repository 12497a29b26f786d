"""Which models share a repository: a language model and its projectors, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from quantmill.config.card import Publish
from quantmill.config.refusal import refuse


class Models(Protocol):
    """What is asked of the config."""

    @property
    def models(self) -> Mapping[str, Any]:
        """The models by name."""

    def recipes_of(self, model: str) -> Mapping[str, Any]:
        """A model's recipes."""

    def publish_of(self, model: str) -> Publish:
        """Its section `publish`."""

    def repository_of(self, model: str) -> str | None:
        """Its repository."""


def owner_of(config: Models, model: str) -> str:
    """The model whose repository, and card there, a model's files are in: the model itself, or a projector's
    language model where both name one repository.
    """
    other: str = config.models[model].language_model or model
    repo = config.repository_of(model)
    shared = repo is not None and other in config.models and config.repository_of(other) == repo
    return other if shared else model


def check_repositories(config: Models) -> None:
    """A repository is of one model, with its projectors: it has one card, and one branch of it is written.
    Of checkpoints that are exported alone nothing is published: `config` is without them.
    """
    seen: dict[tuple[str, str], str] = {}
    for name in filter(config.recipes_of, config.models):
        repo, owner = config.repository_of(name), owner_of(config, name)
        where = f"{f'models.{name}.' if config.models[name].publish else ''}publish"
        modelscope = (config.publish_of(name).modelscope or "").replace("{model}", name)
        for field, place in (("repo", repo), ("modelscope", modelscope)):
            if place and (other := seen.setdefault((field, place), owner)) != owner:
                text = f"{place} is {other}'s too; give each its own, with {{model}} in the name"
                raise refuse("one_repository", text, f"{where}.{field}")
        branch = config.publish_of(owner).revision
        if repo is not None and config.publish_of(name).revision != branch:
            text = f"{owner}, with which it shares {repo}, is in the branch {branch}; give both the same"
            raise refuse("one_branch", text, f"{where}.revision")
