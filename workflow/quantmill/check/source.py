"""Checks a source: its kind, the evaluations that it allows, and that llama.cpp loads it.

Before anything is made of it, and from its header alone: the weights are not read.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from quantmill import command, offload
from quantmill.check import trial
from quantmill.check.kind import Evaluation, kind_of, refuse
from quantmill.engine import placement
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.formats.source import CHECK, Check
from quantmill.model.header import not_finite
from quantmill.progress import Log

_CURE: Final = (
    "convert the model again with the converter of a llama.cpp as new as this one, or take another file of it"
)


def check(path: Path, model: str, requested: list[Evaluation], where: str) -> Check:
    """What `check.json` of docs/files.md says of the source at `path`.

    QuantmillError where it is no source, where something is requested that its kind cannot give, and where
    llama.cpp does not load it, though it should.
    """
    header = read_header(path)
    placement.check(offload.chosen(), path)
    refuse(header, model, requested, where)
    kind = kind_of(header)
    warnings = [
        f"{key} of the metadata is {value}: llama.cpp loads it, other readers may not"
        for key, value in not_finite(header).items()
    ]
    if kind.loads:
        try:
            lines = trial.header(path)
        except QuantmillError as error:
            raise QuantmillError(str(error), path, _CURE) from None
        warnings += [f"llama.cpp, loading the source: {text}" for text in lines]
    return {"kind": kind.name, "words": kind.words, "warnings": warnings}


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `check.source`."""
    model = args.spec["config"]["model"]
    requested = [Evaluation(*one) for one in args.evaluations["models"].get(model, [])]
    report = check(args.model, model, requested, args.evaluations["file"])
    CHECK.write(args.out, report)
    log.warn(report["warnings"])
    log.say(f"{args.model.name} is {report['words']}")


if __name__ == "__main__":
    arguments = command.parser(__doc__, evaluates=True)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF (its first shard)")
    arguments.add_argument(
        "--evaluations",
        type=json.loads,
        default={"file": "config.yaml", "models": {}},
        help="JSON: the config's `file`, and by the names of `models` what it asks of each",
    )
    arguments.add_argument("--out", type=Path, required=True, help="check.json")
    command.run(arguments, main)
