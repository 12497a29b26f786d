"""The templates of the card: where they are, and how they are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from quantmill import text
from quantmill.card import plots
from quantmill.judge.quant import Quant
from quantmill.measures import MAINLINE, SOURCE

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER: Final = Path(__file__).parent
PAGE: Final = ("page.css", "page.html.j2", "page.js")
FILES: Final = tuple(sorted([*FOLDER.glob("sections/*.j2"), *(FOLDER / name for name in PAGE)]))
"""The templates of the model card and its page: a change of one makes the card due."""


def render(name: str, values: Mapping[str, Any]) -> str:
    """A template of this folder with its values."""
    return _environment().get_template(name).render(values)


def row_name(row: str) -> str:
    """A row of the bench in a table's first column."""
    return "*source*" if row == SOURCE else text.code(row)


def engine_name(engine: str) -> str:
    """A plan's engine as its users call it."""
    return {MAINLINE: "llama.cpp", "ik": "ik_llama.cpp"}.get(engine, engine)


def download(quant: Quant) -> str:
    """The arguments of `hf download` for a file: all parts of a split one."""
    if not quant.parts:
        return quant.file
    return f"--include '{quant.file.rsplit('-00001-of-', 1)[0]}-*.gguf'"


def score(value: float, low: float, high: float) -> str:
    """A share in percent, with its interval where it has one: `60.0 % (53 to 67)`."""
    interval = f" ({100 * low:.0f} to {100 * high:.0f})" if low < high else ""
    return f"{100 * value:.1f} %{interval}"


_FILTERS: Final = (
    text.size,
    text.decimal_size,
    text.count,
    text.fixed,
    text.percent,
    text.share,
    text.nats,
    text.small,
    text.rate,
    text.duration,
    text.plural,
    text.md,
    text.code,
    text.fence,
    plots.dark,
    row_name,
    engine_name,
    download,
    score,
)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in _FILTERS:
        environment.filters[function.__name__] = function
    return environment
