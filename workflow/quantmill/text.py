"""How values are written for people: units, numbers with errors, and what must be escaped in markdown."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from typing import Any

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# an underscore within a word emphasizes nothing
_SPECIAL = re.compile(r"([\\`*\[\]|~#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def unit_of(value: float) -> tuple[int, str]:
    """The unit in which bytes of this size are shown, in bytes and by its name."""
    if value >= GIB:
        return GIB, "GiB"
    return (MIB, "MiB") if value >= MIB else (KIB, "KiB")


def size(value: float) -> str:
    """Bytes as `1.23 GiB`, `12.3 MiB` or `4.5 KiB` (powers of two)."""
    if value >= GIB:
        return f"{value / GIB:.2f} GiB"
    return f"{value / MIB:.1f} MiB" if value >= MIB else f"{value / KIB:.1f} KiB"


def at_least(value: float) -> str:
    """Bytes rounded up to whole GiB, below one to whole MiB, as the config takes a size."""
    unit, name = (GIB, "GiB") if value > GIB else (MIB, "MiB")
    return f"{math.ceil(value / unit)} {name}"


def decimal_size(value: float) -> str:
    """Bytes as `1.23 GB`, below one GB as `12.3 MB` (powers of ten), as file listings show them."""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def count(value: float) -> str:
    """A count with thousands separated by commas."""
    return f"{value:,.0f}"


def fixed(value: float, digits: int = 2) -> str:
    """A number with so many decimals."""
    return f"{value:.{digits}f}"


def percent(value: float, error: float | None = None) -> str:
    """A change in percent, signed, with its standard error: `+1.23 ± 0.04 %`; from 100 on whole."""
    digits = 2 if abs(value) < 100 else 0
    change = f"{value:+.{digits}f}"
    return f"{change} %" if error is None else f"{change} ± {error:.{digits}f} %"


def nats(value: float, error: float | None = None) -> str:
    """A KL divergence with its standard error: `0.01234 ± 0.00056`; from 0.1 on three decimals, 0 as such."""
    digits = 5 if abs(value) < 0.1 else 3
    shown = "0" if value == 0 else f"{value:.{digits}f}"
    return shown if error is None or value == 0 else f"{shown} ± {error:.{digits}f}"


def small(value: float) -> str:
    """A number near zero, by two significant digits and its power of ten: `-3.1e-06`."""
    return "0" if value == 0 else f"{value:.1e}"


def share(part: float, whole: float) -> str:
    """A share of the whole in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"


def rate(value: Mapping[str, Any] | None) -> str:
    """Tokens a second, `mean ± sd`, of one half of speed.json; the mean alone of a single run."""
    if value is None:
        return ""
    digits = 0 if value["mean"] >= 1000 else 1 if value["mean"] >= 10 else 2
    spread = "" if len(value["samples"]) == 1 else f" ± {value['sd']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """Seconds that pass or are left: `0.4 s`, `28 s`, `1:23` (minutes), `2 h 10 min`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 and seconds % 1 else f"{seconds:.0f} s"
    if seconds < 3599.5:
        return "{}:{:02}".format(*divmod(round(seconds), 60))
    return hours(seconds)


def hours(seconds: float) -> str:
    """A rough duration: `28 s`, `12 min`, `2 h 10 min`, `31 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes < 1440 else f"{minutes / 60:.0f} h"


def plural(number: int, noun: str) -> str:
    """`1 tensor`, `1,234 tensors`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def md(value: object) -> str:
    """Text that markdown shows as it is, in a table cell too: one line, specials escaped."""
    line = " ".join(str(value).split())
    return _SPECIAL.sub(r"\\\1", html.escape(line, quote=False))


def code(value: object) -> str:
    """A code span; backquotes and bars within it neither end it nor a table's cell."""
    line = " ".join(str(value).split()).replace("|", "\\|")
    ticks = "`" * (_longest_run(line) + 1)
    pad = " " if "`" in line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def fence(value: str, language: str = "") -> str:
    """A fenced block, its fence longer than any in the text."""
    ticks = "`" * max(3, _longest_run(value) + 1)
    return f"{ticks}{language}\n{value.rstrip()}\n{ticks}"


def _longest_run(value: str) -> int:
    return max((len(run) for run in re.findall("`+", value)), default=0)
