"""What all sections of a card are built from: the results, what is offered, and the card's config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from quantmill.card import ollama, texts
from quantmill.formats import settings
from quantmill.judge import advice, frontier
from quantmill.judge.frontier import Unneeded
from quantmill.judge.quant import DECODER, Quant
from quantmill.judge.results import Results
from quantmill.judge.same_size import Entry
from quantmill.judge.together import ProjectorFile

_CONTEXT: Final = 4096
"""Tokens of context in the examples, unless the model's own context is smaller: this fits any machine."""


@dataclass(frozen=True)
class View:
    """One card.

    `measured` are all results, `published` those of the files that are offered.
    `config` is the config of the stage's spec. `plots` is the folder of the
    pictures, relative to the card. `competitors` are the files of the models of
    the same-size comparison, in the order of the config. `projectors` are files in the same repository.
    """

    measured: Results
    published: Results
    withheld: list[Unneeded]
    config: settings.Card
    plots: str = "plots"
    competitors: Sequence[list[Entry]] = ()
    projectors: Sequence[ProjectorFile] = ()

    @property
    def offered(self) -> list[Quant]:
        """The files that are offered, largest first; there may be none."""
        return self.published.quants

    @property
    def drafts(self) -> list[Quant]:
        """The files of a draft head alone, largest first."""
        return self.measured.drafts

    @property
    def shown(self) -> Results:
        """The results that tables and advice are about: of what is offered, of all where nothing is."""
        return self.published if self.published.quants else self.measured

    @property
    def card(self) -> dict[str, Any]:
        """The publisher's part of the config."""
        return self.config["card"]

    @property
    def repo(self) -> str | None:
        """The repository that the files are published in, where there is one."""
        return self.config.get("repo")

    @property
    def absolute(self) -> str:
        """What makes a link absolute, for the attributes that the Hub does not resolve itself."""
        return f"https://huggingface.co/{self.repo}/resolve/main/" if self.repo else ""

    @property
    def base_models(self) -> list[str]:
        """The repositories of the models that were converted."""
        return listed(self.card.get("base_model"))

    @cached_property
    def title(self) -> str:
        """The title of the card."""
        return title_of(self.shown, self.config)

    @cached_property
    def pick(self) -> Quant:
        """The file of the examples: the recommended one where there is one, else the largest."""
        return advice.recommended(self.shown) or self.shown.quants[0]

    @property
    def other_engine(self) -> list[Quant]:
        """The files that llama.cpp itself cannot load."""
        return [quant for quant in self.shown.quants if quant.needs_other_engine]

    @property
    def in_ollama(self) -> list[Quant]:
        """The files that Ollama can load, the one of the examples first."""
        return [quant for quant in (self.pick, *self.shown.quants) if loads_in_ollama(quant, self.shown)]

    @property
    def context(self) -> int:
        """Tokens of context in the examples."""
        return context_of(self.shown)

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling that the files recommend, by the ends of llama.cpp's keys; it is the same in all."""
        checked = [quant.checks for quant in self.shown.quants if quant.checks]
        return dict(checked[0]["sampling"]) if checked else {}

    @property
    def chat(self) -> ollama.Chat | None:
        """The chat template in Ollama's form, where it has one."""
        facts = self.shown.facts
        return ollama.chat(facts["chat_template"], facts.get("tokenizer") or "")

    def text(self, field: str) -> str:
        """A text of the publisher, one of `texts.FIELDS`; empty where there is none."""
        return texts.render(self.card.get(field) or "", self._values, f"card.{field}")

    @cached_property
    def _values(self) -> dict[str, Any]:
        """What the publisher's texts may name, as `texts.VARIABLES` lists it."""
        facts, quants = self.shown.facts, self.shown.quants
        return {
            "model": self.config["model"],
            "title": self.title,
            "base_model": ", ".join(self.base_models) or facts["name"] or self.config["model"],
            "license": self.card.get("license") or facts["licence"] or "",
            "source": self.config["source"]["file"],
            "architecture": facts["architecture"],
            "parameters": facts["parameters"],
            "files": len(quants),
            "largest": quants[0].name,
            "smallest": quants[-1].name,
            "recommended": self.pick.name,
        }


def view(
    measured: Results,
    config: settings.Card,
    plots: str = "plots",
    competitors: Sequence[list[Entry]] = (),
    projectors: Sequence[ProjectorFile] = (),
) -> View:
    """The card of these results: what is withheld is decided here."""
    withheld = frontier.withheld(measured, config.get("withhold", "none"))
    names = {verdict.quant.name for verdict in withheld}
    quants = [quant for quant in measured.quants if quant.name not in names]
    published = replace(measured, quants=quants, withheld=[verdict.quant for verdict in withheld])
    return View(measured, published, withheld, config, plots, competitors, projectors)


def title_of(results: Results, config: settings.Card) -> str:
    """The title: the config's, else made of the base model's name, or the model's own."""
    if config["card"].get("title"):
        return str(config["card"]["title"])
    base = listed(config["card"].get("base_model"))
    return f"{base[0].rsplit('/', 1)[-1] if base else results.facts['name'] or config['model']} GGUF"


def context_of(results: Results) -> int:
    """Tokens of context in the examples and the Modelfiles."""
    return min(results.facts["context_length"] or _CONTEXT, _CONTEXT)


def loads_in_ollama(quant: Quant, results: Results) -> bool:
    """Whether Ollama can load it: a language model of llama.cpp's types, in one file."""
    return results.kind == DECODER and not quant.needs_other_engine and not quant.parts


def listed(value: str | list[str] | None) -> list[str]:
    """A field of the config that holds one text or several, as a list."""
    return [value] if isinstance(value, str) else list(value or [])
