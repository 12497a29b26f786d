"""How much each layer matters, for templates that give better types to more important layers.

Scores come from the imatrix, from a JSON file of the user, or from the table of
sensitivities. Each source is scaled so that its least important layer is 0 and
its most important 1. Then their weighted mean is taken. Layers rank by score;
of equal scores the first layer comes first.

From the imatrix, the score of a layer is the sum over its entries of the
activations' energy per token, sum(in_sum2) / count. Source: ContribDynamic. One
thing differs: here each expert is divided by its own count, and the mean over
the experts that saw tokens is taken. The original divides the sum over all
experts by the sum of all counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import fsum, isfinite
from pathlib import Path
from sys import float_info
from typing import Final

import numpy as np

from quantmill.errors import QuantmillError
from quantmill.files import read_json
from quantmill.formats.imatrix import Imatrix
from quantmill.formats.sensitivity import SensitivityRow
from quantmill.model.roles import layer_of

Scores = Mapping[int, float]

_LAYER: Final = re.compile("[0-9]{1,9}")


def from_imatrix(imatrix: Imatrix, layers: Sequence[int], where: object) -> dict[int, float]:
    """The energy of the inputs of each layer's weights. QuantmillError for a layer without an entry."""
    scores: dict[int, float] = {}
    for name, entry in imatrix.entries.items():
        seen = entry.counts > 0
        if seen.any():
            energy = np.asarray(entry.in_sum2, np.float64).sum(axis=1)[seen] / entry.counts[seen]
            scores[layer_of(name)] = scores.get(layer_of(name), 0.0) + float(energy.mean())
    return _of_layers(scores, layers, where, "the imatrix has no entry for it: use text that reaches it")


def from_json(path: Path, layers: Sequence[int]) -> dict[int, float]:
    """The user's own scores: `{"0": 1.5, "1": 0.2, ...}`, or a list, a number a layer."""
    scores_of_file = read_json(path)
    if isinstance(scores_of_file, list):
        scores_of_file = dict(enumerate(scores_of_file))
    if not isinstance(scores_of_file, dict):
        raise QuantmillError("no scores of layers", path, 'it takes {"0": 1.5, "1": 0.2, ...}')
    scores = {}
    for key, value in scores_of_file.items():
        number = (
            isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= float_info.max
        )
        if not _LAYER.fullmatch(str(key)) or not number:
            raise QuantmillError(f"{key}: {value!r} is no layer's score", path, 'such as "0": 1.5')
        scores[int(key)] = float(value)
    beyond = sorted(set(scores) - set(layers))
    if beyond:
        raise QuantmillError(
            f"scores layer {beyond[0]}, which the model does not have",
            path,
            f"its layers are {layers[0]} to {layers[-1]}",
        )
    return _of_layers(scores, layers, path, "give every layer a score")


def from_sensitivity(
    table: Sequence[SensitivityRow], layers: Sequence[int], where: object
) -> dict[int, float]:
    """The sum of each layer's sensitivities, at the types that all tensors have."""
    types: dict[str, set[str]] = {}
    for row in table:
        types.setdefault(row.name, set()).add(row.type)
    common = set.intersection(*types.values()) if types else set()
    scores: dict[int, float] = {}
    for row in table:
        if row.type in common and layer_of(row.name) >= 0:
            value = row.kld if isfinite(row.kld) else row.error
            scores[row.layer] = scores.get(row.layer, 0.0) + value
    finite = {layer: score for layer, score in scores.items() if isfinite(score)}
    cure = "the table has no sensitivities of it at types that all tensors have"
    return _of_layers(finite, layers, where, cure)


def blend(sources: Sequence[tuple[Scores, float]]) -> dict[int, float]:
    """The weighted mean of scores, each scaled to 0..1. A source with equal scores adds nothing."""
    total = fsum(weight for _, weight in sources)
    blended: dict[int, float] = {}
    for scores, weight in sources:
        low, high = min(scores.values()), max(scores.values())
        for layer, score in scores.items():
            scaled = (score - low) / (high - low) if high > low else 0.0
            blended[layer] = blended.get(layer, 0.0) + scaled * weight / total
    return blended


def ranked(scores: Scores) -> list[int]:
    """The layers, the most important first."""
    return sorted(scores, key=lambda layer: (-scores[layer], layer))


def _of_layers(scores: Scores, layers: Sequence[int], where: object, cure: str) -> dict[int, float]:
    missing = [layer for layer in layers if layer not in scores]
    if missing:
        named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise QuantmillError(f"no importance of layer {named}", where, cure)
    return {layer: scores[layer] for layer in layers}
