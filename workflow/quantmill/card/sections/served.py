"""Speed over HTTP: what a client of a server sees, and the GPU's state where there is one."""

from __future__ import annotations

from typing import Any

from quantmill.card.view import View
from quantmill.measures import SOURCE


def build(view: View) -> dict[str, Any] | None:
    """Where it was measured."""
    source = view.measured.source["served"]
    if source is None:
        return None
    rows = [(SOURCE, source)]
    rows += [(quant.name, report) for quant in view.measured.quants if (report := quant.measured["served"])]
    servers: dict[str, list[str]] = {}
    for name, report in rows:
        servers.setdefault(report["server"], []).append(name)
    processors: dict[str, list[str]] = {}
    for name, report in rows:
        processors.setdefault(report["machine"]["cpu"], []).append(name)
    return {
        "server": source["server"],
        "others": [(server, names) for server, names in servers.items() if server != source["server"]],
        "rows": rows,
        "processors": list(processors.items()) if len(processors) > 1 else [],
        "gpus": [(name, report["gpu"]) for name, report in rows if report["gpu"]],
    }
