"""Speed: tokens a second of each file, and the machine that measured them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from quantmill.card.places import places
from quantmill.card.view import View
from quantmill.judge.results import Results
from quantmill.measures import SOURCE
from quantmill.text import plural, size


def build(view: View) -> dict[str, Any] | None:
    """Where it was measured."""
    source = view.measured.source["speed"]
    if source is None:
        return None
    settings = machines(view.measured)
    marks = {name: number for number, (_, names) in enumerate(settings, start=1) for name in names}
    rows = [
        (quant.name, speed, marks[quant.name], marks[quant.name] == marks[SOURCE])
        for quant in view.measured.quants
        if (speed := quant.measured["speed"])
    ]
    return {
        "source": source,
        "source_mark": marks[SOURCE],
        "places": places(view.measured, "speed"),
        "machines": settings,
        "rows": rows,
    }


def machines(results: Results) -> list[tuple[str, list[str]]]:
    """The machines that measured speed, in words, and which files each measured; usually one."""
    files: dict[str, list[str]] = defaultdict(list)
    rows = [(SOURCE, results.source["speed"])]
    rows += [(quant.name, quant.measured["speed"]) for quant in results.quants]
    for name, speed in rows:
        if speed:
            of = speed["machine"]
            machine = f"{of['cpu']}, {plural(of['cores'], 'core')}, {size(of['memory_bytes'])} memory"
            setting = f"{plural(speed['threads'], 'thread')}, backend {speed['backend']}"
            files[f"{machine}; {setting}"].append(name)
    return list(files.items())
