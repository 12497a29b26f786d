"""Units, numbers with errors, and what is escaped in markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantmill import text

Tree = tuple[Path, dict[str, Any]]


def test_units_and_escapes() -> None:
    assert text.size(3 * 2**30 / 2) == "1.50 GiB"
    assert text.size(2**20 * 12.34) == "12.3 MiB"
    assert text.size(1024 * 1.5) == "1.5 KiB"
    assert text.decimal_size(1_500_000_000) == "1.50 GB"
    assert text.percent(-1.234, 0.05) == "-1.23 ± 0.05 %"
    assert text.rate({"mean": 12.345, "sd": 0.26, "samples": [12, 13]}) == "12.3 ± 0.3"
    assert text.rate({"mean": 1234.5, "sd": 2.6, "samples": [1234, 1235]}) == "1234 ± 3"
    assert text.rate({"mean": 1234.5, "sd": 0.0, "samples": [1234.5]}) == "1234"
    assert text.md("a|b *c* _d_ e_f <g>\nh") == r"a\|b \*c\* \_d\_ e_f &lt;g&gt; h"
    assert text.code("a`b|c") == r"`` a`b\|c ``"
    assert text.fence("x\n```\ny", "yaml") == "````yaml\nx\n```\ny\n````"
    assert [text.clock(s) for s in (0, 0.42, 28.4, 83, 7800, 119_000)] == [
        *("0 s", "0.4 s", "28 s", "1:23", "2 h 10 min", "33 h")
    ]
    assert [text.hours(s) for s in (45, 720, 6780, 90_000)] == ["45 s", "12 min", "1 h 53 min", "25 h"]
    assert [text.duration(s) for s in (45, 200, 8000)] == ["45 s", "3 min", "2.2 h"]


def test_a_size_rounded_up_as_the_config_takes_it() -> None:
    assert [text.at_least(value) for value in (1, 1 << 20, (1 << 30) - 1, 1 << 30, (1 << 30) + 1)] == [
        "1 MiB",
        "1 MiB",
        "1024 MiB",
        "1024 MiB",
        "2 GiB",
    ]
