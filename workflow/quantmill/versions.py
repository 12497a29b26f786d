"""The version of each stage's output.

Raised when the meaning of a stage's output changes: it is part of every `spec`
and of every key of the store, so that whatever was made under the old meaning
is made again. The golden tests fail when an output changes and its version
does not.
"""

from __future__ import annotations

from typing import Final

VERSIONS: Final[dict[str, int]] = {
    "check.source": 1,
    "model.fetch": 1,
    "model.manifest": 2,
    "model.memory": 1,
    "corpus.build": 2,
    "measure.imatrix": 1,
    "budget.imported": 2,
    "budget.reach": 1,
    "budget.allocate": 3,
    "recipe.render": 3,
    "recipe.plan": 4,
    "quantize.write": 3,
    "measure.perplexity": 1,
    "measure.reference": 1,
    "measure.divergence": 1,
    "measure.speed": 1,
    "serve.measure": 1,
    "evaluate.humaneval": 2,
    "evaluate.tasks": 2,
    "sensitivity.errors": 1,
    "sensitivity.probe": 1,
    "sensitivity.measure": 2,
    "card.maps": 1,
    "card.checkpoint": 1,
    "card.write": 5,
    "checkpoint.convert": 1,
    "checkpoint.calibrate": 1,
    "checkpoint.export": 3,
    "publish.cut": 1,
    "publish.upload": 1,
}
