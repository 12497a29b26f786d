"""Checks a finished file: its data, its tokenizer, its chat template, and that its engine takes it.

What is wrong is in the report, and does not end the stage: the card names it, and the run ends in an
error when all else is done (`quantmill.flow.sound`).
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from quantmill import command
from quantmill.check import blocks, trial
from quantmill.check.kind import kind_of
from quantmill.check.template import QUESTION, BrokenTemplateError, prompt_of, taken_by, template_of
from quantmill.engine import library
from quantmill.errors import QuantmillError
from quantmill.formats import general
from quantmill.formats.checks import CHECKS, Checks
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.publication import FACTS
from quantmill.progress import BYTES, Log


def how_tried(header: Header, engine: str) -> Literal["asked", "evaluated", "loaded", "read"]:
    """How far a file can be tried; ik_llama.cpp loads none with multi-token prediction."""
    kind = kind_of(header)
    if not kind.loads or (engine == "ik" and header.has_mtp):
        return "read"
    has_tokenizer = header.text("tokenizer.ggml.model") not in (None, "none", "no_vocab")
    if kind.predicts and engine == "mainline" and has_tokenizer:
        return "asked"
    return "evaluated" if kind.predicts or (kind.answers and engine == "mainline") else "loaded"


def prompt(header: Header, report: Checks) -> str:
    """A question by the file's chat template, or as it stands; what the template takes is noted."""
    try:
        template = template_of(header)
        if template is not None:
            question = prompt_of(template)
            report["template"] = taken_by(template)
            return question
    except (BrokenTemplateError, QuantmillError) as error:  # the latter of one that takes too long
        report["failures"].append(f"its chat template cannot render a question: {error}")
    return str(QUESTION[0]["content"])


def try_out(process: trial.Process, header: Header, report: Checks, question: str, threads: int) -> None:
    """Have a process of its engine load the file, and answer as far as it can; note what is wrong."""
    try:
        if report["tried"] == "asked":
            report["tokenizer"], report["answer"] = process.ask(header.path, question, threads=threads)
        else:
            answers = kind_of(header).answers if report["tried"] == "evaluated" else ""
            process.load(header.path, answers, threads=threads)
    except QuantmillError as error:
        report["failures"].append(f"it does not work: {error}")


def check(header: Header, name: str, sha256: str, engine: str, threads: int, log: Log) -> Checks:
    """The report of a finished file, called `name`, of an engine."""
    size = sum(tensor.bytes for tensor in header.tensors)
    report: Checks = {
        "file": name,
        "sha256": sha256,
        "tensors": len(header.tensors),
        "bytes": size,
        "tokenizer": "none",
        "sampling": general.sampling(header),
        "template": None,
        "tried": how_tried(header, engine),
        "answer": None,
        "failures": [],
    }
    with nullcontext() if report["tried"] == "read" else trial.Process(engine) as process:
        with log.progress(f"check {name}", size, BYTES) as progress:
            report["failures"] += blocks.faults(header, threads, progress)
        question = prompt(header, report)
        if process is not None:
            try_out(process, header, report, question, threads)
    return report


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `check.file`."""
    engine = args.spec["config"].get("engine", "mainline")
    library.use(engine)
    facts = FACTS.read(args.facts)
    header = read_header(args.model, data=engine == "mainline")
    report = check(header, facts["file"], facts["sha256"], engine, args.threads, log)
    CHECKS.write(args.out, report)
    log.warn([f"{facts['file']}: {line}" for line in report["failures"]])
    answered = f"; it answers {report['answer']['text']!r}" if report["answer"] else ""
    log.say(f"{report['tensors']} tensors, {report['bytes']:,} bytes{answered}")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, evaluates=True)
    arguments.add_argument("--model", type=Path, required=True, help="the file (of a split one its first)")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its size and sha256")
    arguments.add_argument("--out", type=Path, required=True, help="checks/<recipe>.json")
    command.run(arguments, main)
