"""`python -m quantmill` lists the stages; `python -m quantmill STAGE ...` runs one under the watcher."""

from __future__ import annotations

import os
import sys
from typing import Final

from quantmill import watch
from quantmill.errors import QuantmillError
from quantmill.stages import STAGES, Stage
from quantmill.tools import TOOLS, Tool

ONE_BLAS_THREAD: Final = dict.fromkeys(("OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
"""The variables of a stage's process: a stage divides work among threads of its own. BLAS with threads of
its own would add numbers in another order for each number of them."""

_USAGE = """\
usage: python -m quantmill STAGE [arguments]   run a stage (STAGE --help lists its arguments)
       snakemake --cores all                   run what config.yaml asks for
"""


def main(arguments: list[str]) -> int:
    """List the stages, or run one; the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(listing(), end="")
        return 0
    name = arguments[0].removeprefix("quantmill.")
    if name not in STAGES and name not in TOOLS:
        print(f"error: {_unknown(arguments[0])}", file=sys.stderr)
        return 2
    os.environ.update(ONE_BLAS_THREAD)
    return watch.main([sys.executable, "-m", f"quantmill.{name}", *arguments[1:]])


def listing() -> str:
    """All stages with what each does, reads and writes."""
    blocks = [_USAGE, "The stages, in the order of the workflow. Paths are below results/<model>/.\n"]
    blocks += map(_described, STAGES.values())
    blocks += ["Commands for people, which no rule runs:\n", *map(_described, TOOLS.values())]
    return "\n".join(blocks)


def _described(stage: Stage | Tool) -> str:
    import textwrap

    lines = [f"{stage.name:<22}{stage.what}"]
    for label, text in (("reads", stage.reads), ("writes", stage.writes)):
        first, rest = f"{'':<22}{label:<8}", " " * 30
        wrapped = textwrap.wrap(text, 100, initial_indent=first, subsequent_indent=rest)
        lines += wrapped
    return "\n".join(lines) + "\n"


def _unknown(name: str) -> QuantmillError:
    import difflib

    near = difflib.get_close_matches(name, [*STAGES, *TOOLS], 1)
    cure = f"did you mean {near[0]}?" if near else "`python -m quantmill` lists the stages"
    return QuantmillError("no stage of that name", name, cure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
