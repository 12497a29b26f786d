"""The charts of the interactive page, in its order: each a module with `build`.

`build` returns the chart, or None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from quantmill.card.charts import bits, files, importance, sensitivity, texts
from quantmill.card.charts.chart import Chart
from quantmill.judge.frontier import Unneeded
from quantmill.judge.results import Results

Builder = Callable[[Results, Sequence[Unneeded]], Chart | None]

CHARTS: Final[tuple[Builder, ...]] = (
    files.build,
    bits.build,
    sensitivity.build,
    importance.build,
    texts.build,
)
