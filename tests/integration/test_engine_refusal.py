"""An engine that this machine cannot run is refused before the first job, where the jobs run here."""

import subprocess
import sys
from pathlib import Path

from checkout import Checkout

PROGRAM = """
from quantmill.engine import library
library.Build.read = lambda path: library.Build({known})
from snakemake.cli import main
main(["--dry-run", "--cores=1"])
"""


def lines(folder: Path, known: str) -> list[str]:
    """What Snakemake says on stderr where `make env` recorded this of the engines."""
    Checkout.build(folder)
    command = [sys.executable, "-c", PROGRAM.format(known=known)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr.splitlines()


def test_one_that_was_built_for_another_processor(tmp_path: Path) -> None:
    assert lines(tmp_path / "checkout", "frozenset(('avx1024',))")[-1] == (
        "error: engine mainline: llama-cpp-python needs a processor with avx1024, which this one has not; "
        "build it here (`make -B env`), or once for all machines (`make env PORTABLE=1`)"
    )


def test_one_whose_self_test_failed(tmp_path: Path) -> None:
    assert lines(tmp_path / "checkout", "fault='dies here with SIGILL (q8_0 weights, dense)'")[-1] == (
        "error: engine mainline: llama-cpp-python dies here with SIGILL (q8_0 weights, dense) "
        "(the self-test of `make env`); run `make env` again"
    )
