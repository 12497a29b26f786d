"""The same-size comparison: the best file of this model and of another, within each band of size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantmill.card.view import View
from quantmill.judge import same_size
from quantmill.judge.same_size import Band, Entry


@dataclass(frozen=True)
class Comparison:
    """Another model: its name, where its figures come from, the bands."""

    name: str
    source: str
    bands: list[Band]

    @property
    def scored(self) -> bool:
        """Whether both models have a HumanEval score."""
        return all(any(entry and entry.score for entry in side) for side in self._sides)

    @property
    def diverged(self) -> bool:
        """Whether both models have a KL divergence."""
        return all(any(entry and entry.kld is not None for entry in side) for side in self._sides)

    @property
    def _sides(self) -> tuple[list[Entry | None], list[Entry | None]]:
        return [band.ours for band in self.bands], [band.theirs for band in self.bands]


def build(view: View) -> dict[str, Any] | None:
    """Where the config names other models to compare with."""
    # The spec's `iso_disk` keeps its name: it is part of specs of cards that exist.
    models = view.card.get("iso_disk") or []
    ours = same_size.ours(view.shown) if models else []
    comparisons = [
        Comparison(model["name"], model.get("source") or "", same_size.bands(ours, files))
        for model, files in zip(models, view.competitors, strict=True)
    ]
    return {"name": view.config["model"], "comparisons": comparisons} if comparisons else None
