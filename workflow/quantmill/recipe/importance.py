"""How much each layer matters, for templates that give the better types to the better layers.

Scores come from the imatrix, from a JSON of the user's, or from the table of
damages; each source is scaled so that its least layer is 0 and its greatest 1,
and a weighted mean of them is taken. Layers rank by score, the first of equals
first.

From the imatrix a layer's score is, as ContribDynamic published it, the sum over
its entries of the activations' energy per token, sum(in_sum2) / count, but each
expert by its own count: the mean over the experts that were seen at all, where
the original divides the sum of all by the sum of all counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum, isfinite
from pathlib import Path

import numpy as np

from quantmill.errors import QuantmillError
from quantmill.files import read_json
from quantmill.formats.imatrix import Imatrix
from quantmill.formats.sensitivity import SensitivityRow
from quantmill.model.roles import layer_of

Scores = Mapping[int, float]


def from_imatrix(imatrix: Imatrix, layers: Sequence[int], where: object) -> dict[int, float]:
    """The energy that the layers' weights are given. QuantmillError for a layer without an entry."""
    scores: dict[int, float] = {}
    for name, entry in imatrix.entries.items():
        seen = entry.counts > 0
        if seen.any():
            energy = np.asarray(entry.in_sum2, np.float64).sum(axis=1)[seen] / entry.counts[seen]
            scores[layer_of(name)] = scores.get(layer_of(name), 0.0) + float(energy.mean())
    return _of_layers(scores, layers, where, "the imatrix has no entry for it: use text that reaches it")


def from_json(path: Path, layers: Sequence[int]) -> dict[int, float]:
    """The user's own scores: `{"0": 1.5, "1": 0.2, ...}`, or a list with one a layer."""
    given = read_json(path)
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict):
        raise QuantmillError("no scores of layers", path, 'it takes {"0": 1.5, "1": 0.2, ...}')
    scores = {}
    for key, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
        if not str(key).isdecimal() or not number:
            raise QuantmillError(f"{key}: {value!r} is no layer's score", path, 'such as "0": 1.5')
        scores[int(key)] = float(value)
    beyond = sorted(set(scores) - set(layers))
    if beyond:
        raise QuantmillError(
            f"scores layer {beyond[0]}, which the model has not", path,
            f"its layers are {layers[0]} to {layers[-1]}",
        )  # fmt: skip
    return _of_layers(scores, layers, path, "give every layer a score")


def from_damages(damages: Sequence[SensitivityRow], layers: Sequence[int], where: object) -> dict[int, float]:
    """The damage that a layer's tensors do, summed over them and over the types that all of them have."""
    types: dict[str, set[str]] = {}
    for damage in damages:
        types.setdefault(damage.name, set()).add(damage.type)
    common = set.intersection(*types.values()) if types else set()
    scores: dict[int, float] = {}
    for damage in damages:
        if damage.type in common and layer_of(damage.name) >= 0:
            value = damage.kld if isfinite(damage.kld) else damage.error
            scores[damage.layer] = scores.get(damage.layer, 0.0) + value
    unknown = [layer for layer, score in scores.items() if not isfinite(score)]
    return _of_layers(
        {layer: score for layer, score in scores.items() if layer not in unknown}, layers, where,
        "the table has no damages of it at types that all tensors have",
    )  # fmt: skip


def blend(sources: Sequence[tuple[Scores, float]]) -> dict[int, float]:
    """The weighted mean of scores, each scaled to 0..1; all 0 where a source tells no layer from another."""
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


def _of_layers(scores: Scores, layers: Sequence[int], where: object, why: str) -> dict[int, float]:
    missing = [layer for layer in layers if layer not in scores]
    if missing:
        named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise QuantmillError(f"no importance of layer {named}", where, why)
    return {layer: scores[layer] for layer in layers}
