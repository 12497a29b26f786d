"""Files that failed their check: once all else is made, a run that has one ends in an error."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quantmill.errors import QuantmillError
from quantmill.formats.checks import CHECKS


def refuse(reports: Iterable[str | Path]) -> None:
    """QuantmillError for the first file that failed; it counts the others. A report that is elsewhere, in a
    storage, says nothing here.

    The reports of those that failed go: a run in which nothing is due ends without an error, whatever was
    found before. So the next run checks them again.
    """
    checked = {path: CHECKS.read(path) for path in sorted(map(Path, reports)) if path.exists()}
    failed = [report for report in checked.values() if report["failures"]]
    for path, report in checked.items():
        if report["failures"]:
            path.unlink()
    if failed:
        first, more = failed[0], len(failed) - 1
        others = f" (and {more} more file{'s' if more > 1 else ''})" if more else ""
        cure = "change its recipe or the source, or leave it out"
        raise QuantmillError(f"failed its check: {first['failures'][0]}{others}", first["file"], cure)
